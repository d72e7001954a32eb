"""Each scheme against a plain loop: outputs, gradients, at awkward lengths, with padding.

B sequences, T tokens, D width, E experts.
"""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import build_model
from modbench.model.experts import ExpertBank
from modbench.model.registry import build_router
from modbench.routers.expert_choice import ExpertChoiceExperts
from modbench.routers.mod import DepthRouted
from modbench.routers.token_choice import TokenChoiceExperts

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


def expert(bank: ExpertBank, number: int, x_D: Tensor) -> Tensor:
    gate, value = (bank.up[number] @ x_D).chunk(2)
    return bank.down[number] @ (F.silu(gate) * value)


def best(scores: Tensor, k: int) -> list[int]:
    """Indices of the k highest, ties to the lowest index, in ascending order."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))[:k])


def loop_token_choice(layer: TokenChoiceExperts, x_TD: Tensor) -> Tensor:
    options = layer.options
    rows = []
    for x_D in x_TD:
        probabilities_E = (layer.router @ x_D).softmax(0)
        chosen = best(probabilities_E, options.top_k)
        total = probabilities_E[chosen].sum() if options.renormalise else 1.0
        out_D = torch.zeros_like(x_D)
        for number in chosen:
            if number < options.experts:  # the rest are no-ops
                out_D = out_D + probabilities_E[number] / total * expert(layer.bank, number, x_D)
        rows.append(out_D)
    return torch.stack(rows)


def loop_expert_choice(layer: ExpertChoiceExperts, x_TD: Tensor) -> Tensor:
    options = layer.options
    scores_TE = (x_TD @ layer.router.T).softmax(-1)
    out_TD = [torch.zeros_like(x_D) for x_D in x_TD]
    for number in range(options.experts):
        k = math.ceil(len(x_TD) * options.capacity / options.experts)
        for t in best(scores_TE[:, number], k):
            out_TD[t] = out_TD[t] + scores_TE[t, number] * expert(layer.bank, number, x_TD[t])
    return torch.stack(out_TD)


def loop_depth(layer: DepthRouted, x_TD: Tensor) -> Tensor:
    options = layer.options
    scores_T = (x_TD @ layer.router.T).squeeze(-1)
    chosen = best(scores_T, math.ceil(options.capacity * len(x_TD)))
    context = Context(positions_BT=torch.tensor([chosen]))
    inside_KD = x_TD[chosen]
    delta_KD = layer.block(inside_KD[None], context)[0] - inside_KD
    out_TD = list(x_TD)
    for place, t in enumerate(chosen):
        r = scores_T[t]
        gate = {"linear": r, "sigmoid": r.sigmoid(), "scaled_sigmoid": 2 * r.sigmoid()}[options.gate]
        update_D = delta_KD[place] + (inside_KD[place] if options.residual == "full" else 0)
        out_TD[t] = x_TD[t] + gate * update_D
    return torch.stack(out_TD)


CASES: dict[str, tuple[str, dict, int, Callable]] = {
    "token_choice": ("token_choice", {}, 0, loop_token_choice),
    "token_choice-top1": ("token_choice", {"top_k": 1, "renormalise": False}, 0, loop_token_choice),
    "token_choice-3of5": (
        "token_choice",
        {"experts": 5, "top_k": 3, "expert_width": 7},
        0,
        loop_token_choice,
    ),
    "mode_integrated": ("mode_integrated", {"no_op_experts": 3}, 0, loop_token_choice),
    "expert_choice": ("expert_choice", {}, 0, loop_expert_choice),
    "expert_choice-c1of3": (
        "expert_choice",
        {"experts": 3, "capacity": 1.0, "expert_width": 9},
        0,
        loop_expert_choice,
    ),
    "mod": ("mod", {}, 1, loop_depth),
    "mod-half": ("mod", {"capacity": 0.5, "gate": "sigmoid"}, 1, loop_depth),
    "mod-full-residual": ("mod", {"residual": "full", "gate": "scaled_sigmoid"}, 1, loop_depth),
    "mod-aux": ("mod", {"causal": "aux_bce", "capacity": 0.07}, 1, loop_depth),
    "mode_staged": ("mode_staged", {"capacity": 0.3}, 1, loop_depth),
}


def part_of(name: str, options: dict, depth: int) -> torch.nn.Module:
    model = build_model(SHAPE, build_router(name, options), seed=5).double()
    layer = model.layers[depth]
    part = layer if isinstance(layer, DepthRouted) else layer.feed_forward
    for parameter in part.parameters():  # far from ties, and gates of some size
        torch.nn.init.normal_(parameter, std=0.3)
    return part


@pytest.mark.parametrize("lengths", [(63,), (17, 63, 1), (5, 5)], ids=["one-of-63", "ragged", "short"])
@pytest.mark.parametrize("case", CASES)
def test_a_scheme_equals_its_plain_loop(case: str, lengths: tuple[int, ...]) -> None:
    name, options, depth, loop = CASES[case]
    part = part_of(name, options, depth)
    twin = copy.deepcopy(part)
    x_BTD = torch.randn(len(lengths), max(lengths), SHAPE.width, dtype=torch.float64)
    ragged = len(set(lengths)) > 1
    context = Context(lengths_B=torch.tensor(lengths) if ragged else None)

    fast_BTD = part(x_BTD, context)
    weight_BTD = torch.randn_like(fast_BTD)
    fast_loss = sum(
        (fast_BTD[row, :length] * weight_BTD[row, :length]).sum() for row, length in enumerate(lengths)
    )
    fast_loss.backward()

    slow_loss = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths):
        slow_TD = loop(twin, x_BTD[row, :length])
        torch.testing.assert_close(fast_BTD[row, :length], slow_TD, rtol=1e-6, atol=1e-8)
        slow_loss = slow_loss + (slow_TD * weight_BTD[row, :length]).sum()
    slow_loss.backward()
    compared = 0
    for (key, ours), theirs in zip(part.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is None:  # the predictor: taught by its own loss alone
            assert ours.grad is None, key
            continue
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8, msg=key)
        compared += 1
    assert compared >= 3


def test_pooling_the_batch_equals_one_long_sequence() -> None:
    part = part_of("expert_choice", {"pool": "batch"}, 0)
    x_BTD = torch.randn(3, 8, SHAPE.width, dtype=torch.float64)
    together_BTD = part(x_BTD, Context())
    torch.testing.assert_close(together_BTD.flatten(0, 1), loop_expert_choice(part, x_BTD.flatten(0, 1)))


def test_padding_enters_no_pool_of_the_batch() -> None:
    part = part_of("expert_choice", {"pool": "batch"}, 0)
    x_BTD = torch.randn(2, 8, SHAPE.width, dtype=torch.float64)
    lengths_B = torch.tensor([8, 3])
    ours_BTD = part(x_BTD, Context(lengths_B=lengths_B))
    real_ND = torch.cat((x_BTD[0], x_BTD[1, :3]))
    slow_ND = loop_expert_choice(part, real_ND)
    torch.testing.assert_close(torch.cat((ours_BTD[0], ours_BTD[1, :3])), slow_ND)
