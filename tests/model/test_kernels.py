"""Hand-written backward passes against autograd's of the plain formulas, outputs and gradients.

N tokens, D model width, V vocabulary, H heads, P width of a head, F hidden width.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbench.model.kernels import RMSNorm, angles, rotate, swiglu, widened


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def alike(ours, plain, *inputs: Tensor) -> None:
    """Same output and same gradients of all inputs, to the rounding of float64."""
    results = []
    for function in (ours, plain):
        copies = [value.clone().requires_grad_() for value in inputs]
        out = function(*copies)
        (out * drawn(*out.shape, seed=9)).sum().backward()
        results.append([out.detach(), *(copy.grad for copy in copies)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 63, 24), (2, 1000, 16)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    def ours(x_ND: Tensor, weight_D: Tensor) -> Tensor:
        norm = RMSNorm(shape[-1], eps=1e-5).double()
        norm.weight = nn.Parameter(torch.zeros(shape[-1], dtype=torch.float64))
        del norm.weight
        norm.weight = weight_D  # no parameter, so that its gradient reaches the input
        return norm(x_ND)

    def plain(x_ND: Tensor, weight_D: Tensor) -> Tensor:
        return x_ND / (x_ND.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight_D

    for scale in (1, 1e-4):  # where epsilon tells
        x_ND, weight_D = scale * drawn(*shape), drawn(shape[-1], seed=1)
        alike(ours, plain, x_ND, weight_D)
        with torch.no_grad():  # PyTorch's own
            mine, theirs = (norm(x_ND, weight_D) for norm in (ours, plain))
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_rms_norm_of_frozen_parts() -> None:
    norm = RMSNorm(8).double().requires_grad_(False)
    x_ND = drawn(5, 8).requires_grad_()
    norm(x_ND).sum().backward()
    assert x_ND.grad is not None
    assert norm.weight.grad is None
    norm.requires_grad_(True)
    norm(drawn(5, 8)).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("sequences", [1, 3])
def test_rotation(sequences: int) -> None:
    angles_BT1P = drawn(sequences, 63, 1, 4, seed=2)

    def plain(x_BTHP: Tensor) -> Tensor:
        pairs = torch.complex(x_BTHP[..., :4], x_BTHP[..., 4:]) * torch.polar(
            torch.ones_like(angles_BT1P), angles_BT1P
        )
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    alike(lambda x: rotate(x, angles_BT1P.cos(), angles_BT1P.sin()), plain, drawn(3, 63, 5, 8))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sequences", [1, 3])
def test_rotation_by_widened_angles_is_the_same_to_the_bit(sequences: int, dtype: torch.dtype) -> None:
    positions_BT = torch.arange(sequences * 63).view(sequences, 63)
    x_BTHP, half = drawn(3, 63, 5, 8).to(dtype), angles(positions_BT, 4, 10_000.0)
    turned = rotate(x_BTHP, *widened(*half))
    assert turned.dtype == dtype
    assert torch.equal(turned, rotate(x_BTHP, *half))
    assert not torch.equal(turned, x_BTHP)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.compile's own
@pytest.mark.parametrize("positions", [[[0, 1, 2, 3]], [[0, 7, 511], [3, 4, 5000]]], ids=str)
def test_angles_of_a_program_are_those_that_are_written(positions: list[list[int]]) -> None:
    positions_BT, half, base = torch.tensor(positions), 4, 10_000.0
    written = angles(positions_BT, half, base)
    for found, function in zip(written, (math.cos, math.sin), strict=True):
        turns = [[n * base ** (-i / half) for i in range(half)] for n in positions_BT.flatten().tolist()]
        truth = [list(map(function, angles_P)) for angles_P in turns]
        rounding = 2e-7 * positions_BT.max().item()
        torch.testing.assert_close(found.flatten(0, 2), torch.tensor(truth), atol=rounding, rtol=0)
    torch._dynamo.reset()
    called: list[str] = []

    def backend(program: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        called.extend(str(n.target) for n in program.graph.nodes if n.op.startswith("call"))
        return program

    compiled = torch.compile(angles, backend=backend, fullgraph=True, dynamic=False)
    for found, truth in zip(compiled(positions_BT, half, base), written, strict=True):
        assert found.shape == (*positions_BT.shape, 1, half)
        assert torch.equal(found, truth)
    # One op: of parts, each kernel that takes them would reckon them anew.
    assert [name for name in called if "built-in" not in name] == ["modbench.angles.default"]


def test_swiglu() -> None:
    def plain(up: Tensor) -> Tensor:
        return up[..., :7] * up[..., :7].sigmoid() * up[..., 7:]

    alike(swiglu, plain, drawn(3, 63, 14))
