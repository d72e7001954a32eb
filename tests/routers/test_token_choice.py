"""Token choice: each preset against the loop of its paper, options against the plain loop, what drops
and what balances, the options, and what every scheme shows.

B sequences, T tokens, N tokens of all sequences, D width, E experts, K chosen.
"""

import naive_presets
import pytest
import torch
from against_loop import equals_its_loop, model_of

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.expert_bank import ExpertBank
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.registry import build_router, preset_options

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=72)
AWKWARD = ModelConfig(
    vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80, tied_head=False
)
SMALL = ModelConfig(vocabulary=97, width=8, layers=1, heads=2, mlp_width=16)
#: DeepSeek-V3 with fewer experts, so that a few tokens meet them all.
FEWER = {"experts": 16, "top_k": 4, "groups": 4, "top_groups": 2}


def options_of(preset: str) -> dict:
    return preset_options(f"token_choice:{preset}")[1]


def part_of(options: dict, shape: ModelConfig = SHAPE) -> RoutedExperts:
    part = model_of("token_choice", options, shape).layers[0].feed_forward
    assert isinstance(part, RoutedExperts)
    return part.eval()


LENGTHS = [((17, 63, 1), "topk"), ((17, 63, 1), "causal")]
LONG = [((63,), "topk"), ((63, 63, 63), "topk"), ((1000,), "causal"), ((9, 1000, 63), "topk")]


@pytest.mark.parametrize(
    ("lengths", "rule"),
    [*LENGTHS, *(pytest.param(*one, marks=pytest.mark.full) for one in LONG)],
    ids=str,
)
@pytest.mark.parametrize("preset", naive_presets.PRESETS)
def test_a_preset_equals_the_loop_of_its_paper(preset: str, lengths: tuple[int, ...], rule: str) -> None:
    part = part_of(options_of(preset), SHAPE if max(lengths) < 1000 else SMALL).train()
    equals_its_loop(part, lengths, rule, loop=naive_presets.PRESETS[preset])


#: Options that no preset has, each with those that it works with.
COMBINED: dict[str, dict] = {
    "drops-3-of-5": {"experts": 5, "top_k": 3, "expert_width": 7, "capacity_factor": 1.0},
    "z-alone": {"balance": 0.0, "z_loss": 0.1},
    "sequence-balance": {"balance_scope": "sequence", "renormalise": False},
    "sigmoid": {"affinity": "sigmoid", "scaling": 0.5, "renormalise": False},
    "softmax-bias": {"bias_step": 0.1, "capacity_factor": 1.25},
    "softmax-groups": {"groups": 4, "top_groups": 2, "top_k": 3, "expert_width": 5},
    "one-group": {"groups": 2, "affinity": "sigmoid", "bias_step": 0.1},
    "shared-gate": {"shared_experts": 2, "shared_width": 5, "shared_gate": True, "expert_width": 3},
    "shared-drops": {"shared_experts": 1, "capacity_factor": 1.0},
}
NO_OPS: dict[str, dict] = {
    "top-1": {"top_k": 1, "renormalise": False, "no_op_experts": 2},
    "drops": {"no_op_experts": 3, "capacity_factor": 1.0},
    "bias": {"bias_step": 0.1, "balance_scope": "sequence"},
    "shared-sigmoid": {"affinity": "sigmoid", "shared_experts": 1, "shared_gate": True},
}


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize(
    ("router", "options"),
    [("token_choice", options) for options in COMBINED.values()]
    + [("mode_integrated", options) for options in NO_OPS.values()],
    ids=[*COMBINED, *(f"no-ops-{name}" for name in NO_OPS)],
)
def test_options_equal_their_plain_loop(router: str, options: dict, rule: str) -> None:
    part = model_of(router, options, SHAPE).layers[1].feed_forward
    told = equals_its_loop(part, (17, 63, 1), rule)
    if "capacity_factor" in options and rule == "topk":
        assert sum(told.shown[1, "dropped"]) > 0


def test_it_equals_its_plain_loop_in_an_awkward_shape() -> None:
    part = part_of({**options_of("deepseek_v3"), **FEWER}, AWKWARD).train()
    equals_its_loop(part, (31, 9), "topk")


def test_an_expert_with_no_room_drops_the_later_tokens_and_says_so() -> None:
    part = part_of({"experts": 4, "top_k": 1, "renormalise": False, "capacity_factor": 1.0})
    torch.nn.init.zeros_(part.router.weight)
    part.router.weight.data[2, 0] = 9.0  # all choose expert 2
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
    torch.nn.init.zeros_(part.router.bias.value)
    x_BTD = torch.randn(2, 40, 32, dtype=torch.float64)
    part(x_BTD, Context())
    part.train()(x_BTD, Context(selection="causal"))
    assert not part.router.bias.value.any()
    context = Context()
    part(x_BTD, context)
    load_E = context.trace.tensors[0, "load"]
    wanted = [0.25 * ((workload < 20) - (workload > 20)) for workload in load_E.tolist()]
    assert part.router.bias.value.tolist() == wanted
    assert not context.trace.tensors[0, "experts.state.bias.value"].any()  # what that pass chose with


def test_the_bias_evens_the_load() -> None:
    part = part_of({"affinity": "sigmoid", "balance": 0.0, "bias_step": 0.005}).train()
    torch.nn.init.zeros_(part.router.bias.value)
    part.router.weight.data[:, 0] = torch.linspace(-1, 1, 8)
    x_BTD = torch.randn(4, 200, 32, dtype=torch.float64)
    x_BTD[..., 0] = 1.0
    loads = []
    for _ in range(150):
        context = Context()
        part(x_BTD, context)
        loads.append(context.trace.tensors[0, "load"].max().item())
    assert loads[0] > 300 > 210 > max(loads[-9:])  # 200 would be even


def test_the_bias_changes_the_choice_and_no_gate() -> None:
    """Under a bias that changes no choice the layer gives the same bits and the same gradients."""
    part = part_of({"experts": 4, "top_k": 2, "affinity": "sigmoid", "bias_step": 0.1})
    torch.nn.init.zeros_(part.router.bias.value)
    x_BTD = torch.randn(2, 9, 32, dtype=torch.float64)
    before_BTD = part(x_BTD, Context())
    part.router.bias.value += 7.0
    assert torch.equal(part(x_BTD, Context()), before_BTD)
    part.router.bias.value[3] += 9.0
    context = Context()
    assert not torch.equal(part(x_BTD, context), before_BTD)
    assert context.trace.tensors[0, "load"][3] == 18
    assert "router.bias.value" in part.state_dict()
    assert all(name != "router.bias.value" for name, _ in part.named_parameters())


def test_widths_that_are_given_are_kept() -> None:
    for options, widths in (
        ({"shared_experts": 2}, (18, 36)),
        ({"shared_experts": 1, "expert_width": 5}, (5, 5)),
        ({"shared_experts": 2, "expert_width": 5, "shared_width": 3}, (5, 6)),
        ({"shared_experts": 2, "shared_width": 5, "shared_gate": True, "expert_width": 3}, (3, 10)),
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


@pytest.mark.parametrize(
    "options",
    [{}, {"capacity_factor": 1.0}, {"top_k": 1, "renormalise": False, "capacity_factor": 1.25}],
    ids=str,
)
@pytest.mark.parametrize("scheme", ["token_choice", "mode_integrated"])
def test_counts_that_stay_on_the_device_change_nothing(
    scheme: str, options: dict, shape: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU, `grouped_mm` on this device, against the path of a CPU."""
    model = build_model(shape, build_router(scheme, {} if scheme != "token_choice" else options)).train()
    tokens_BT = torch.arange(2 * 31).view(2, 31) % shape.vocabulary
    found = []
    for on_device in (False, True):
        monkeypatch.setattr(ExpertBank, "grouped", lambda bank, x_D, answer=on_device: answer)
        context = Context()
        logits_BTV = model(tokens_BT, context)
        (logits_BTV.logsumexp(-1).mean() + context.trace.auxiliary_loss()).backward()
        found.append([logits_BTV, *(p.grad for p in model.parameters())])
        assert context.trace.counts[0, "experts"]
        model.zero_grad(set_to_none=True)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
