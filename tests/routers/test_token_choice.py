"""Token choice: each preset against a loop written from its paper, what drops and what balances, the
options, and what every scheme shows.

B sequences, T tokens, N tokens of all sequences, D width, E experts, K chosen.
"""

import copy
import math
from collections.abc import Callable

import layer_checks as checks
import pytest
import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.flops.ledger import Load
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import build_model
from modbench.model.registry import build_router, preset_options
from modbench.routers.token_choice import TokenChoice, TokenChoiceExperts

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=72)
AWKWARD = ModelConfig(
    vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80, tied_head=False
)
SMALL = ModelConfig(vocabulary=97, width=8, layers=1, heads=2, mlp_width=16)
#: DeepSeek-V3 with fewer experts, so that a few tokens meet them all.
FEWER = {"experts": 16, "top_k": 4, "groups": 4, "top_groups": 2}


def options_of(preset: str) -> dict:
    return preset_options(f"token_choice:{preset}")[1]


def part_of(options: dict, shape: ModelConfig = SHAPE) -> TokenChoiceExperts:
    model = build_model(shape, build_router("token_choice", options), seed=5).double()
    part = model.layers[0].feed_forward
    for parameter in part.parameters():  # far from ties, and gates of some size
        torch.nn.init.normal_(parameter, std=0.3)
    if part.bias is not None:
        torch.nn.init.normal_(part.bias.value, std=0.2)
    return part.eval()


class Twin:
    """The matrices of a layer one by one, so that a loop's gradient need not write whole banks."""

    def __init__(self, part: TokenChoiceExperts) -> None:
        self.e = part.router
        self.ups, self.downs = part.bank.up.unbind(0), part.bank.down.unbind(0)
        self.b = part.bias.value if part.bias is not None else None
        self.shared = part.shared

    def expert(self, number: int, x_D: Tensor) -> Tensor:
        return swiglu(self.ups[number], self.downs[number], x_D)


def swiglu(up: Tensor, down: Tensor, x_D: Tensor) -> Tensor:
    gate, value = (up @ x_D).chunk(2)
    return down @ (gate / (1 + torch.exp(-gate)) * value)


def softmax(logits_E: Tensor) -> Tensor:
    return torch.exp(logits_E) / torch.exp(logits_E).sum()


def best(scores_E: Tensor, k: int) -> list[int]:
    scores = scores_E.tolist()
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


Rows = list[list[Tensor]]  # tokens of sequences


def switch(twin: Twin, x: Rows, rule: str) -> tuple[Rows, Tensor]:
    """Fedus et al. 2021, equations 1 to 6; under the causal rule with no capacity to speak of."""
    experts, tokens = len(twin.e), sum(map(len, x))
    capacity = math.ceil(tokens / experts * 1.25) if rule == "topk" else tokens
    taken, p_sum, out = [0] * experts, 0, []
    for sequence in x:
        out.append([])
        for x_D in sequence:
            p_E = softmax(twin.e @ x_D)
            (i,) = best(p_E, 1)
            room = taken[i] < capacity
            out[-1].append(p_E[i] * twin.expert(i, x_D) if room else torch.zeros_like(x_D))
            taken[i], p_sum = taken[i] + 1, p_sum + p_E
    f = [n / tokens for n in taken]
    return out, 0.01 * experts * sum(f[i] * p_sum[i] / tokens for i in range(experts))


def mixtral(twin: Twin, x: Rows, rule: str) -> tuple[Rows, Tensor]:
    """Jiang et al. 2024, section 2.1: Softmax(Top2(x W))_i SwiGLU_i(x), summed."""
    out, assigned, p_sum = [], [0] * len(twin.e), 0
    for sequence in x:
        out.append([])
        for x_D in sequence:
            logits_E = twin.e @ x_D
            chosen = best(logits_E, 2)
            gates = softmax(logits_E[chosen])
            out[-1].append(sum(g * twin.expert(i, x_D) for g, i in zip(gates, chosen, strict=True)))
            p_sum = p_sum + softmax(logits_E)
            for i in chosen:
                assigned[i] += 1
    tokens = sum(map(len, x))
    shares = [n / (2 * tokens) for n in assigned]
    return out, 0.01 * len(twin.e) * sum(s * p / tokens for s, p in zip(shares, p_sum, strict=True))


def olmoe(twin: Twin, x: Rows, rule: str) -> tuple[Rows, Tensor]:
    """Muennighoff et al. 2024, equations 1 to 3, and Zoph et al. 2022, equation 5; the balance loss at
    an eighth, so that it is 1 at an even load."""
    out, f, p_sum, z_sum = [], [0] * 64, 0, 0
    for sequence in x:
        out.append([])
        for x_D in sequence:
            logits_E = twin.e @ x_D
            p_E = softmax(logits_E)
            chosen = best(p_E, 8)
            out[-1].append(sum(p_E[i] * twin.expert(i, x_D) for i in chosen))
            p_sum, z_sum = p_sum + p_E, z_sum + torch.log(torch.exp(logits_E).sum()) ** 2
            for i in chosen:
                f[i] += 1
    tokens = sum(map(len, x))
    balance = 64 * sum(f[i] / tokens * p_sum[i] / tokens for i in range(64)) / 8
    return out, 0.01 * balance + 0.001 * z_sum / tokens


def deepseek_v3(twin: Twin, x: Rows, rule: str) -> tuple[Rows, Tensor]:
    """DeepSeek-V3, equations 12 to 20: 8 of 256 experts, of 4 of 8 groups by their best two."""
    out, losses = [], []
    for sequence in x:
        f, p_E = [0.0] * 256, 0
        out.append([])
        for u_D in sequence:
            s_E = 1 / (1 + torch.exp(-(twin.e @ u_D)))
            biased = (s_E + twin.b).tolist()
            sums = [sum(sorted(biased[g * 32 : g * 32 + 32])[-2:]) for g in range(8)]
            groups = sorted(range(8), key=lambda g: (-sums[g], g))[:4]
            allowed = [i for i in range(256) if i // 32 in groups]
            chosen = sorted(allowed, key=lambda i: (-biased[i], i))[:8]
            routed_D = sum(s_E[i] * twin.expert(i, u_D) for i in chosen) / s_E[chosen].sum() * 2.5
            out[-1].append(routed_D + swiglu(twin.shared.up.weight, twin.shared.down.weight, u_D))
            for i in best(s_E, 8):
                f[i] += 256 / (8 * len(sequence))
            p_E = p_E + s_E / s_E.sum() / len(sequence)
        losses.append(0.0001 * (torch.tensor(f, dtype=torch.float64) * p_E).sum())
    return out, sum(losses) / len(losses)


LOOPS: dict[str, Callable[[Twin, Rows, str], tuple[Rows, Tensor]]] = {
    "switch": switch,
    "mixtral": mixtral,
    "olmoe": olmoe,
    "deepseek_v3": deepseek_v3,
}


LENGTHS = [((63,), "topk"), ((63, 63, 63), "topk"), ((17, 63, 1), "topk"), ((17, 63, 1), "causal")]
LENGTHS += [((9, 1000, 63), "topk")]


@pytest.mark.parametrize(("lengths", "rule"), LENGTHS, ids=str)
@pytest.mark.parametrize("preset", LOOPS)
def test_a_preset_equals_the_loop_of_its_paper(preset: str, lengths: tuple[int, ...], rule: str) -> None:
    shape = SHAPE if max(lengths) < 1000 else SMALL
    part = part_of(options_of(preset), shape)
    slow = copy.deepcopy(part)
    x_BTD = torch.randn(len(lengths), max(lengths), shape.width, dtype=torch.float64)
    context = Context(selection=rule, lengths_B=checks.lengths_of(lengths))
    fast_BTD = part(x_BTD, context)
    twin_rows, twin_loss = LOOPS[preset](
        Twin(slow), [list(x_BTD[b, :n]) for b, n in enumerate(lengths)], rule
    )
    fast_ND = torch.cat([fast_BTD[b, :n] for b, n in enumerate(lengths)])
    slow_ND = torch.stack([row_D for rows in twin_rows for row_D in rows])
    torch.testing.assert_close(fast_ND, slow_ND, rtol=1e-6, atol=1e-8)
    fast_loss = context.trace.auxiliary_loss()
    torch.testing.assert_close(fast_loss, twin_loss, rtol=1e-6, atol=1e-10)
    weight_ND = torch.randn_like(fast_ND)
    ((fast_ND * weight_ND).sum() + 100 * fast_loss).backward()
    ((slow_ND * weight_ND).sum() + 100 * twin_loss).backward()
    for (name, one), other in zip(part.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-8, msg=name)


def test_an_expert_with_no_room_drops_the_later_tokens_and_says_so() -> None:
    part = part_of({"experts": 4, "top_k": 1, "renormalise": False, "capacity_factor": 1.0})
    torch.nn.init.zeros_(part.router)
    part.router.data[2, 0] = 9.0  # all choose expert 2
    x_BTD = torch.randn(2, 10, 32, dtype=torch.float64)
    x_BTD[..., 0] = 1.0
    context = Context()
    passed_ND = (part(x_BTD, context) == 0).all(-1).flatten()
    assert passed_ND.tolist() == [False] * 5 + [True] * 15
    assert context.trace.tensors[0, "load"].tolist() == [0, 0, 5, 0]
    assert context.trace.tensors[0, "dropped"].tolist() == [0, 0, 15, 0]
    assert context.trace.counts[0, "experts"] == (5,)
    # Padding takes no room, and leaves less of it.
    context = Context(lengths_B=torch.tensor([3, 9]))
    passed_BT = (part(x_BTD, context) == 0).all(-1)
    assert (~passed_BT).nonzero().tolist() == [[0, 0], [0, 1], [0, 2]]
    context = Context(selection="causal")
    assert part(x_BTD, context).all()
    assert context.trace.counts[0, "experts"] == (20,)


def test_the_bias_follows_the_load_in_training_alone() -> None:
    part = part_of({"bias_step": 0.25, "balance": 0.0})
    torch.nn.init.zeros_(part.bias.value)
    x_BTD = torch.randn(2, 40, 32, dtype=torch.float64)
    part(x_BTD, Context())
    part.train()(x_BTD, Context(selection="causal"))
    assert not part.bias.value.any()
    context = Context()
    part(x_BTD, context)
    load_E = context.trace.tensors[0, "load"]
    wanted = [0.25 * ((load < 20) - (load > 20)) for load in load_E.tolist()]
    assert part.bias.value.tolist() == wanted
    assert not context.trace.tensors[0, "bias"].any()  # what that pass chose with


def test_the_bias_evens_the_load() -> None:
    part = part_of({"affinity": "sigmoid", "balance": 0.0, "bias_step": 0.005}).train()
    torch.nn.init.zeros_(part.bias.value)
    part.router.data[:, 0] = torch.linspace(-1, 1, 8)
    x_BTD = torch.randn(4, 200, 32, dtype=torch.float64)
    x_BTD[..., 0] = 1.0
    loads = []
    for _ in range(150):
        context = Context()
        part(x_BTD, context)
        loads.append(context.trace.tensors[0, "load"].max().item())
    assert loads[0] > 300 > 210 > max(loads[-9:])  # 200 would be even


def test_the_bias_chooses_and_weighs_nothing() -> None:
    """Under a bias that changes no choice the layer gives the same bits and the same gradients."""
    part = part_of({"experts": 4, "top_k": 2, "affinity": "sigmoid", "bias_step": 0.1})
    torch.nn.init.zeros_(part.bias.value)
    x_BTD = torch.randn(2, 9, 32, dtype=torch.float64)
    before_BTD = part(x_BTD, Context())
    part.bias.value += 7.0
    assert torch.equal(part(x_BTD, Context()), before_BTD)
    part.bias.value[3] += 9.0
    context = Context()
    assert not torch.equal(part(x_BTD, context), before_BTD)
    assert context.trace.tensors[0, "load"][3] == 18
    assert "bias.value" in part.state_dict()
    assert all(name != "bias.value" for name, _ in part.named_parameters())


def test_a_gated_shared_expert_is_weighed_by_its_sigmoid() -> None:
    part = part_of({"shared_experts": 2, "shared_width": 5, "shared_gate": True, "expert_width": 3})
    x_BTD = torch.randn(1, 7, 32, dtype=torch.float64)
    with_BTD = part(x_BTD, Context())
    plain = copy.deepcopy(part)
    plain.shared, plain.shared_gate = None, None
    adds_BTD = with_BTD - plain(x_BTD, Context())
    for x_D, adds_D in zip(x_BTD[0], adds_BTD[0], strict=True):
        gate = 1 / (1 + torch.exp(-(part.shared_gate[0] @ x_D)))
        wanted_D = swiglu(part.shared.up.weight, part.shared.down.weight, x_D)
        torch.testing.assert_close(adds_D, gate * wanted_D)
    assert part.shared.down.weight.shape == (32, 10)


@pytest.mark.parametrize("width", [384, 1000, 18432])
@pytest.mark.parametrize("preset", TokenChoice.presets)
def test_a_preset_spends_on_its_experts_what_a_dense_mlp_does(preset: str, width: int) -> None:
    shape = ModelConfig(layers=1, mlp_width=width)
    with torch.device("meta"):
        routed = build_router("token_choice", options_of(preset)).build_layer(shape, 0)
        dense = build_router("vanilla").build_layer(shape, 0)
    load = Load.uniform(2, 9, "train")
    parts = routed.ledger(load).by_component("model")
    assert parts["experts"] + parts.get("mlp", 0) == dense.ledger(load).by_component("model")["mlp"]
    extra = routed.feed_forward.router.numel()
    assert routed.active_parameters() - extra == dense.active_parameters()


def test_widths_that_are_given_are_kept() -> None:
    for options, widths in (
        ({"shared_experts": 2}, (18, 36)),
        ({"shared_experts": 1, "expert_width": 5}, (5, 5)),
        ({"shared_experts": 2, "expert_width": 5, "shared_width": 3}, (5, 6)),
        ({"shared_experts": 2, "shared_width": 3}, (33, 6)),
        ({"shared_experts": 1, "top_k": 4}, (14, 16)),
    ):
        part = part_of(options)
        assert (part.bank.width, part.shared.model.hidden) == widths
    for options, words in (
        ({"shared_experts": 1, "shared_width": 3}, "2 active and 1 shared experts of width 3"),
        ({"shared_experts": 1, "shared_width": 80}, "mlp_width 72 can't be shared"),
        ({"shared_experts": 71}, "mlp_width 72 can't be shared by 2 active and 71 shared experts;"),
        ({"top_k": 5}, "can't be shared by 5 active experts"),
    ):
        with pytest.raises(UserError, match=words):
            part_of(options)


REFUSED: list[tuple[dict, str]] = [
    ({"experts": 0}, "experts is 0; it must be 1 or more"),
    ({"experts": 4, "top_k": 5}, "top_k is 5 of 4 experts"),
    ({"top_k": 1}, "top_k 1 with renormalise true"),
    ({"expert_width": 0}, "expert_width is 0"),
    ({"shared_experts": 1, "shared_width": 0}, "shared_width is 0"),
    ({"shared_experts": -1}, "shared_experts is -1; it must be 0 or more"),
    ({"shared_width": 8}, "shared_width is 8 with shared_experts 0"),
    ({"shared_gate": True}, "shared_gate is true with shared_experts 0"),
    ({"balance": -1.0}, "balance is -1.0; it must be 0 or more"),
    ({"bias_step": -0.1}, "bias_step is -0.1"),
    ({"balance": 0.0, "balance_scope": "sequence"}, "balance_scope is 'sequence' with balance 0"),
    ({"affinity": "sigmoid", "z_loss": 0.1}, "z_loss is 0.1 with affinity 'sigmoid'"),
    ({"affinity": "sigmiod"}, "one of 'softmax', 'sigmoid'"),
    ({"scaling": 0.0}, "scaling is 0; it must be above 0"),
    ({"capacity_factor": 0.5}, "capacity_factor is 0.5; it must be 1 or more"),
    ({"groups": 3}, "groups is 3 of 8 experts; it must divide experts"),
    ({"groups": 0}, "groups is 0"),
    ({"groups": 2, "top_groups": 3}, "top_groups is 3 of 2 groups"),
    ({"groups": 8}, "top_k is 2 and the 1 groups that a token may choose have 1 experts"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_options_that_can_not_be_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_router("token_choice", options)


def test_no_op_experts_stand_in_no_group() -> None:
    with pytest.raises(UserError, match="groups is 2 with no_op_experts 8"):
        build_router("mode_integrated", {"groups": 2, "top_groups": 1})


SCHEMES: dict[str, checks.Scheme] = {
    "switch": checks.Scheme("token_choice", {**options_of("switch"), "experts": 5}, AWKWARD),
    "deepseek_v3": checks.Scheme("token_choice", {**options_of("deepseek_v3"), **FEWER}, AWKWARD),
    "drops-shared-gate": checks.Scheme(
        "token_choice", {"capacity_factor": 1.0, "shared_experts": 2, "shared_gate": True}, SHAPE
    ),
    "no-ops": checks.Scheme(
        "mode_integrated", {"capacity_factor": 1.5, "bias_step": 0.01, "shared_experts": 1}, SHAPE
    ),
    "staged": checks.Scheme(
        "mode_staged",
        {"capacity": 0.4, "capacity_factor": 1.0, "bias_step": 0.01, "balance_scope": "sequence"},
        SHAPE,
    ),
}
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


@schemes
def test_it_costs_what_its_ledger_says(scheme: checks.Scheme) -> None:
    checks.costs_what_it_selects(scheme, torch.float32)
    checks.costs_what_it_promises(scheme, torch.bfloat16)


@schemes
def test_what_is_frozen_costs_no_gradient(scheme: checks.Scheme) -> None:
    checks.frozen_parts_cost_no_gradient(scheme)


@schemes
def test_decoding_equals_scoring(scheme: checks.Scheme) -> None:
    checks.decodes_what_it_scores(scheme)


@schemes
def test_it_passes_the_audit(scheme: checks.Scheme) -> None:
    checks.passes_the_audit(scheme)


@schemes
def test_checkpointing_changes_nothing(scheme: checks.Scheme) -> None:
    checks.runs_again_as_it_ran(scheme)


@schemes
def test_it_stands_in_every_dtype_and_goes_on_from_its_state(scheme: checks.Scheme) -> None:
    checks.stands_in_every_dtype(scheme)
    checks.saves_and_loads(scheme)
