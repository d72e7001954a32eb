"""The plain parts of a block against their formulas, and second derivatives of whole models.

B sequences, T tokens, H heads, P width of a head.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from modbench.kernels.expert_bank.plain import activation
from modbench.model.attention import rotary_angles, rotate
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router


def test_rotation_turns_each_pair_by_its_angle() -> None:
    """As multiplication by e^(i angle) of the pairs taken as complex numbers."""
    x_BTHP = torch.randn(3, 63, 5, 8, dtype=torch.float64)
    angles_BT1P = torch.randn(3, 63, 1, 4, dtype=torch.float64)
    pairs = torch.complex(x_BTHP[..., :4], x_BTHP[..., 4:])
    turned = pairs * torch.polar(torch.ones_like(angles_BT1P), angles_BT1P)
    found = rotate(x_BTHP, angles_BT1P.cos(), angles_BT1P.sin())
    torch.testing.assert_close(found, torch.cat((turned.real, turned.imag), dim=-1))


@pytest.mark.parametrize("positions", [[[0, 1, 2, 3]], [[0, 7, 511], [3, 4, 5000]]], ids=str)
def test_angles_are_those_of_the_paper(positions: list[list[int]]) -> None:
    positions_BT, half, base = torch.tensor(positions), 4, 10_000.0
    found = rotary_angles(positions_BT, 2 * half, base)
    for part, function in zip(found, (math.cos, math.sin), strict=True):
        turns = [[n * base ** (-i / half) for i in range(half)] for n in positions_BT.flatten().tolist()]
        truth = torch.tensor([list(map(function, angles_P)) for angles_P in turns])
        rounding = 2e-7 * positions_BT.max().item()
        torch.testing.assert_close(part.flatten(0, 2), truth, atol=rounding, rtol=0)


def test_rotation_keeps_the_dtype_and_computes_in_float32() -> None:
    x_BTHP, angles = torch.randn(1, 9, 2, 8), rotary_angles(torch.arange(9)[None], 8, 10_000.0)
    found = rotate(x_BTHP.bfloat16(), *angles)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotate(x_BTHP.bfloat16().float(), *angles).bfloat16())


def test_swiglu_gates_the_second_half_by_the_first() -> None:
    up = torch.randn(3, 63, 14, dtype=torch.float64)
    truth = up[..., :7] * up[..., :7].sigmoid() * up[..., 7:]
    torch.testing.assert_close(activation(up, "swiglu"), truth)


@pytest.mark.parametrize("name", ["vanilla", "mod", "token_choice"])
def test_a_model_can_be_differentiated_twice(name: str) -> None:
    """The gradient's own derivative along a direction, against a difference of gradients."""
    config = ModelConfig(vocabulary=61, width=16, layers=2, heads=2, mlp_width=32)
    model = build_model(config, build_router(name)).double().train()
    tokens_BT = torch.arange(2 * 9).view(2, 9) * 7 % 61
    weight = model.layers[0].attention.qkv.weight
    along = torch.randn_like(weight)

    def gradient(*, graph: bool) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], Context())
            return torch.autograd.grad(loss, weight, create_graph=graph)[0]

    (second,) = torch.autograd.grad((gradient(graph=True) * along).sum(), weight)
    step, ends = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(along, alpha=sign * step)
        ends.append(gradient(graph=False))
        with torch.no_grad():
            weight.sub_(along, alpha=sign * step)
    torch.testing.assert_close(second, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-8)
