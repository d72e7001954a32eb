"""Single probes: correct routers that resemble a bug pass, and variants of bugs fail.

B sequences, T tokens, S slots, D model width, E experts; R sequences with selected tokens, K the most of
one sequence.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mutants
import pytest
import torch
from mutants import SHAPE, Depth, Right, learning, model_of
from torch import Tensor, nn

from modbench.audit import Finding, audit, findings
from modbench.audit.finding import NO_BLOCK, Subject, unmoved
from modbench.audit.learning import NO_GATE, gradient
from modbench.audit.state import changed_by_scoring, state
from modbench.ledger import Ledger, Workload, component, matmul
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.init import normal_
from modbench.model.mlp import MLP, FeedForward
from modbench.routers.expert_choice import ExpertChoice
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouted
from modbench.routing.expert_bank import ExpertBank, dispatched
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.gathered_tokens import GatheredTokens, group_equal_sizes
from modbench.routing.registry import build_router
from modbench.routing.scorer import LinearScorer
from modbench.routing.topk import counts_to_host, score

EXPERTS = 4


def failures(model: Decoder, *probes: int) -> dict[int, str]:
    """Figures of the failed ones of ``probes``, by number; of all if none is given."""
    only = probes or range(1, 13)
    return {f.probe: f.figure for f in findings(model, only=only) if f.failed}


def of(base: type[Right] = Right, parts: Callable[[Any], None] | None = None, **methods: Any) -> type:
    """``base`` with other methods, and with what ``parts`` adds to it."""
    if parts is not None:

        def made(self: Any, options: Depth, model: ModelConfig, layer: int) -> None:
            base.__init__(self, options, model, layer)
            parts(self)

        methods["__init__"] = made
    return type("Case", (base,), methods)


@pytest.mark.parametrize("gate", ["linear", "scaled_sigmoid"])
def test_a_residual_of_the_whole_block_passes_where_it_is_declared(gate: str) -> None:
    router = build_router("mod", {"residual": "full", "gate": gate})
    assert failures(build_model(SHAPE, router, seed=4), 5, 6, 7, 8) == {}


def test_a_residual_of_the_whole_block_is_a_double_residual_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for declared, options in ((False, {"residual": "full"}), (True, {})):
        model = build_model(SHAPE, build_router("mod", options), seed=4)
        monkeypatch.setattr(DepthRouted, "adds_residual", declared)
        assert set(failures(model, 5, 6, 7, 8)) == {6}


class InAList(Right):
    """Its block stands in a list."""

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        self.blocks = nn.ModuleList([self._modules.pop("block")])

    def __getattr__(self, name: str):
        return super().__getattr__("blocks")[0] if name == "block" else super().__getattr__(name)


class Renamed(Right):
    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        self.chooser = self._parameters.pop("router")

    def initialise(self, seed: int) -> None:
        for parameter in (self.chooser, self.predictor):
            nn.init.normal_(parameter)

    def __getattr__(self, name: str):
        return super().__getattr__("chooser" if name == "router" else name)


class Unshown(Right):
    """Does not show which tokens are selected."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        out_BTD = super().forward(x_BTD, context)
        context.trace.tensors.pop((self.layer, "selected"), None)
        return out_BTD


class Hiding(Right):
    """Training changes the gate by one of three attributes that are not saved."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.list, self.tensor = [{"steps": 0}], torch.zeros(1)
        self.register_buffer("buffer", torch.zeros(1), persistent=False)

    def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
        if self.training and not context.trace.repeated:
            if self.where == "list":
                self.list[0]["steps"] += 1
            else:
                getattr(self, self.where).add_(1)
        return super().highest(scores_BT, context)

    def gate(self, scores_RK: Tensor) -> Tensor:
        steps = self.list[0]["steps"] if self.where == "list" else getattr(self, self.where).item()
        return super().gate(scores_RK) * (1 + steps / 100)


class HalfMasked(Right):
    """Half of the saving is real: attention runs for the selected alone."""

    def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
        delta_RKD = super().delta(inner, scores_RK)
        rest_1TD = torch.zeros(1, 3 * delta_RKD.shape[1], delta_RKD.shape[2]).to(delta_RKD)
        return delta_RKD + 0 * self.block.feed_forward(rest_1TD, Context()).sum()


class Unsaved(Right):
    """A constant drawn from the seed."""

    def initialise(self, seed: int) -> None:
        super().initialise(seed)
        self.factor = 1 + seed / 7

    def gate(self, scores_RK: Tensor) -> Tensor:
        scaled = self.options.gate == "scaled_sigmoid"
        return super().gate(scores_RK) * (1 if scaled else self.factor)


def second_block(layer: Any) -> None:
    """A block that is drawn from the same stream as the first."""
    layer.second = Block(layer.model, layer.layer)


def exits(*_: object) -> None:
    raise SystemExit(0)


NO_ROUTER = "cross-entropy does not reach layers.1.router"
#: The layer, the probes asked, those that fail, and words of the first one's figure.
FAIL: dict[str, tuple[type, tuple[int, ...], set[int], str]] = {
    # Its ledger counts a gradient that does not exist.
    "gate detached": (of(gate=lambda self, s: Right.gate(self, s).detach()), (8, 9), {8, 9}, NO_ROUTER),
    "gradient of zeros": (of(gate=lambda self, s: s.detach() + 0 * s), (8,), {8}, NO_ROUTER),
    "gradient of no numbers": (of(gate=lambda self, s: s + (s - s).sqrt()), (8,), {8}, NO_ROUTER),
    "router of another name": (
        of(Renamed, gate=lambda self, s: Right.gate(self, s.detach())), (8,), {8}, "layers.1.chooser",
    ),
    "predictor untaught": (
        of(errors=lambda self, h, t: Right.errors(self, h.detach(), t)), (8, 9), {8, 9},
        "no loss reaches layers.1.predictor",
    ),
    "predictor of PyTorch's untaught": (
        of(parts=lambda layer: setattr(layer, "predictor_of_more", nn.Linear(32, 1, bias=False))),
        (8,), {8}, "no loss reaches layers.1.predictor_of_more.weight",
    ),
    "experts alike": (
        of(
            parts=second_block,
            delta=lambda self, inner, s: (
                Right.delta(self, inner, s) + 0 * self.second.delta(inner.x_RKD, inner.context)
            ),
        ),
        (8,), {8}, "start with the same weights",
    ),
    "a list": (of(Hiding, where="list"), (10,), {10}, "logits of the loaded model"),
    "a buffer": (of(Hiding, where="buffer"), (10,), {10}, "logits of the loaded model"),
    "a tensor": (of(Hiding, where="tensor"), (10,), {10}, "logits of the loaded model"),
    "a buffer never filled": (
        of(parts=lambda layer: layer.register_buffer("forgotten", torch.empty(1, 32))),
        (10,), {10}, "layers.1.forgotten is never filled",
    ),
    "a constant of the seed": (Unsaved, (10,), {10}, r"logits of the loaded model \(topk\) differ by"),
    "no count in the trace": (
        of(nominal_counts=lambda self, workload: {(1, "entered"): (1,)}), (4,), {4},
        "declares entered 1, and the trace has no such count",
    ),
    "half masked": (HalfMasked, (9, 11), {9, 11}, ""),
    "doubled in a list": (type("Doubled", (mutants.DoubleResidual, InAList), {}), (6, 7, 11), {6}, ""),
    "masked and not shown": (
        type("Masked", (mutants.MaskedButComputed, Unshown), {}), (11,), {11}, "layer 1 spends 3.",
    ),
    # Top-k selects at least one token; the ledger of a threshold must handle none.
    "no token selected": (
        of(highest=lambda self, s, c: s >= 0.2, nominal_counts=lambda self, workload: {}), (9,), {9},
        "in a training step of one token",
    ),
    "random scoring": (
        of(likely=lambda self, h, c: h + torch.randn_like(h) >= 0.3), (1,), {1},
        r"two equal passes \(causal\) differ",
    ),
    "exits": (of(likely=exits), (1, 2), {1, 2}, r"SystemExit: 0 \(.*test_audit_probes.py, line \d+\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAIL)
def test_a_variant_of_a_bug_fails(case: str) -> None:
    layer, asked, probes, words = FAIL[case]
    found = failures(model_of(layer), *asked)
    assert set(found) == probes
    assert re.search(words, found[min(found)])


def frozen(layer: Any) -> None:
    layer.predictor_before = nn.Parameter(torch.zeros(1, 32), requires_grad=False)


def zeros(self: Right, seed: int) -> None:
    nn.init.zeros_(self.router)
    nn.init.zeros_(self.predictor)


def drawn(self: Right, hints_BT: Tensor, targets_BT: Tensor) -> Tensor:
    return Right.errors(self, hints_BT, targets_BT) * (torch.rand(hints_BT.shape) < 0.5)


def cached(self: Right, scores_BT: Tensor, context: Context) -> Tensor:
    if not hasattr(self, "made"):
        self.made = {"table": torch.arange(9)}
    return Right.highest(self, scores_BT, context)


def unset(layer: Any) -> None:
    """NaN where a value is not known yet: what stays NaN has not changed."""
    layer.unset = float("nan")
    layer.register_buffer("saved", torch.full((2,), float("nan")))
    layer.register_buffer("scratch", torch.full((2,), float("nan")), persistent=False)


@pytest.mark.parametrize(
    ("layer", "asked"),
    [
        (of(errors=drawn), (8, 9, 10)),
        (of(highest=cached), (1, 10)),
        (of(parts=frozen), (8,)),
        (of(initialise=zeros), (8,)),
        (of(parts=unset), (10,)),
        (InAList, (5, 6, 7, 8, 11)),
    ],
    ids=["a random loss", "made on first use", "frozen", "zeros", "nan", "block in a list"],
)
def test_what_resembles_a_bug_passes(layer: type, asked: tuple[int, ...]) -> None:
    assert {finding.verdict for finding in findings(model_of(layer), only=asked)} == {"passed"}


def test_a_selection_by_lot_is_no_teacher_of_one_sequence() -> None:
    options = {"scores": "gaussian", "capacity": 0.4}
    assert failures(build_model(SHAPE, build_router("mode_staged", options), seed=4), 8) == {}


def test_an_option_of_the_same_name_that_means_something_else_is_left_alone() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other(Depth):
        capacity: float = 3.0

        def build_layer(self, model: ModelConfig, layer: int):
            if self.capacity < 2:
                raise ValueError("capacity is experts per token here")
            return Depth(gate=self.gate).build_layer(model, layer)

    assert failures(build_model(SHAPE, Other(), seed=4), 6, 8) == {}


def test_one_of_several_routers_with_a_weak_gradient_fails() -> None:
    def weak(self: Right, scores_RK: Tensor) -> Tensor:
        if self.layer == 1:
            return Right.gate(self, scores_RK)
        return scores_RK.detach() + 1e-3 * (scores_RK - scores_RK.detach())

    found = learning(of(gate=weak), layers=4)
    assert found == (False, "the router's gradient is 1.0e-03 of a linear gate's")
    assert learning(of(gate=weak))[0] is True  # without the other


def test_a_buffer_made_on_first_use_is_not_changed_by_scoring() -> None:
    """It cannot be loaded, though, which probe 10 finds."""

    def forward(self: Right, x_BTD: Tensor, context: Context) -> Tensor:
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(3))
        return Right.forward(self, x_BTD, context)

    subject = Subject(model_of(of(forward=forward)))
    assert changed_by_scoring(subject) == ""
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layers\.1\.late"):
        state(subject, subject.tokens(3, 63))


def test_nan_equals_nan_alone() -> None:
    one = torch.tensor([1.0, torch.nan])
    assert unmoved(one, one.clone())
    assert not unmoved(one, torch.tensor([1.0, 0.0]))
    assert not unmoved(torch.tensor([torch.inf]), torch.tensor([torch.finfo().max]))
    assert not unmoved(torch.tensor([1.0]), torch.tensor([1.0, 1.0]))


def test_an_expert_that_takes_one_too_few_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ExpertChoice.taken

    def nominal_counts(self: RoutedExperts, workload: Workload) -> Any:
        each = sum(right(self.options, n) for n in workload.lengths)
        return {(self.layer, "load"): (each,) * self.options.experts}

    monkeypatch.setattr(RoutedExperts, "nominal_counts", nominal_counts)
    monkeypatch.setattr(ExpertChoice, "taken", lambda self, n: max(1, right(self, n) - 1))
    model = build_model(SHAPE, build_router("expert_choice"))
    assert "layer 0 declares load" in failures(model, 4)[4]


def test_a_router_without_a_block_of_ours_is_unchecked_where_tokens_skip() -> None:
    def several(layer: Any) -> None:
        layer.blocks.append(Block(layer.model, layer.layer))
        layer.blocks[1].requires_grad_(False)

    for finding in findings(model_of(of(InAList, parts=several)), only={6, 7, 11}):
        figure = f"tokens skip layer 1, {NO_BLOCK}"
        assert (finding.verdict, finding.figure) == ("unchecked", figure)


def test_skipping_is_found_where_it_is_not_shown() -> None:
    found = {finding.probe: finding for finding in findings(model_of(Unshown))}
    # With capacity 1 no token is left unchanged, so the selection cannot be inferred.
    assert {probe for probe, finding in found.items() if finding.verdict == "not asked"} == {5, 6}
    assert "does not show selected" in found[5].figure
    assert [finding for finding in found.values() if finding.failed] == []


def test_a_router_parameter_of_another_name_is_asked_for_a_gradient() -> None:
    (finding,) = findings(model_of(Renamed), only={8})
    assert finding.verdict == "unchecked"
    assert "cross-entropy reaches 1 of the 2 parameters of the scheme's own classes" in finding.figure


class Scored(FeedForward):
    """The best of four experts, weighted by its sigmoid."""

    scorer = staticmethod(lambda width: LinearScorer(width, EXPERTS, stream="scored"))
    loss = staticmethod(lambda self, x_SD, scores_SE: None)
    gates = staticmethod(lambda scores_SE, chosen_SE: scores_SE.sigmoid())
    router_only = True

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.bank = ExpertBank(model, layer, experts=EXPERTS, width=16)
        self.router = self.scorer(model.width)
        if not self.router_only:
            self.anything = nn.Linear(model.width, 1)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_SD = x_BTD.flatten(0, 1)
        scores_SE = self.router(x_SD)
        chosen_SE = torch.zeros_like(scores_SE, dtype=torch.bool)
        chosen_SE.scatter_(1, scores_SE.argmax(1, keepdim=True), True)
        load_E = chosen_SE.sum(0)
        context.trace.show(self.layer, "load", load_E)
        real_BT = context.real(x_BTD)
        real_S = torch.ones(len(x_SD), dtype=torch.bool) if real_BT is None else real_BT.flatten()
        loss = self.loss(self, x_SD[real_S], scores_SE[real_S])
        if context.selection == "topk" and loss is not None:
            context.trace.loss(self.layer, "auxiliary", loss)
        gates_SE = self.gates(scores_SE, chosen_SE)
        return dispatched(self.bank, x_BTD, gates_SE, chosen_SE, load_E.tolist())

    def ledger(self, workload: Workload) -> Ledger:
        return Ledger()


class OfTwoParts(nn.Module):
    """Scores by one of two linear maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.used, self.other = (nn.Linear(width, EXPERTS, bias=False) for _ in range(2))

    def forward(self, x_SD: Tensor) -> Tensor:
        return self.used(x_SD)


def by_an_mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, EXPERTS, bias=False))


def of_others(self: Any, x_SD: Tensor, scores_SE: Tensor) -> Tensor:
    """An auxiliary loss that alone reaches the other map, and a parameter of any name."""
    return (self.router.other(x_SD).square().mean() + self.anything(x_SD).square().mean()) / 100


def renormalised(scores_SE: Tensor, chosen_SE: Tensor) -> Tensor:
    """The gate of one expert divided by itself: always 1."""
    gates_SE = scores_SE.softmax(1) * chosen_SE
    return gates_SE / gates_SE.sum(1, keepdim=True)


class Heavy(FeedForward):
    """A light MLP for all tokens, and a heavy one for those that score above 0 (as in CoLT5)."""

    gate = staticmethod(lambda scores_S1: scores_S1.sigmoid())

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.light = MLP(replace(model, mlp_width=8), layer)
        self.heavy = ExpertBank(model, layer, experts=1, width=model.hidden)
        self.router = nn.Parameter(torch.empty(1, model.width))

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"heavy {self.layer}")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        scores_S1 = score(x_BTD, self.router).view(-1, 1)
        chosen_S1, gates_S1 = scores_S1 >= 0, self.gate(scores_S1)
        heavy_BTD = dispatched(self.heavy, x_BTD, gates_S1, chosen_S1, [int(chosen_S1.sum())])
        return self.light(x_BTD, context) + heavy_BTD

    def ledger(self, workload: Workload) -> Ledger:
        return Ledger()


ROUTER = "layers.1.feed_forward.router"


@pytest.mark.parametrize(
    ("kind", "methods", "passed", "words"),
    [
        (Scored, {}, True, "cross-entropy reaches 1 router parameter"),
        (Scored, {"scorer": by_an_mlp}, True, "reaches 3 router parameters"),
        (
            Scored,
            {"scorer": OfTwoParts, "loss": of_others, "router_only": False},
            True,
            "reaches 1 router",
        ),
        (Scored, {"gates": renormalised}, False, f"does not reach {ROUTER}{NO_GATE}"),
        (
            Scored,
            {"gates": renormalised, "loss": lambda self, x, s: s.softmax(1).square().mean()},
            False,
            f"does not reach {ROUTER}{NO_GATE}",
        ),
        (Scored, {"scorer": OfTwoParts}, False, f"no loss reaches {ROUTER}.other.weight"),
        (Heavy, {}, True, "cross-entropy reaches 1 router parameter"),
        (Heavy, {"gate": lambda s: s.detach().sigmoid()}, False, f"does not reach {ROUTER}"),
    ],
)
def test_a_scorer_of_experts_is_asked_what_teaches_it(
    kind: type, methods: dict[str, Any], passed: bool, words: str
) -> None:
    statics = {name: staticmethod(method) if method else method for name, method in methods.items()}
    found, figure = learning(type("Case", (kind,), statics))
    assert found is passed
    assert words in figure


def test_a_softmax_over_one_expert_has_nothing_to_choose() -> None:
    options = {"experts": 1, "top_k": 1, "renormalise": False}
    subject = Subject(build_model(SHAPE, build_router("token_choice", options), seed=4))
    outcome = None, "a softmax over one expert has no gradient"
    assert gradient(subject, subject.tokens(3, 63)) == outcome


class Attends(Right):
    """Attention for the tokens that score above 0, among themselves; the MLP for all: no token skips."""

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        del self.predictor

    def initialise(self, seed: int) -> None:
        normal_(self.router, seed, f"router {self.layer}")

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("router", self.layer):
            scores_BT = score(x_BTD, self.router).squeeze(-1)
        attending_BT, real_BT = scores_BT >= 0, context.real(x_BTD)
        if real_BT is not None:
            attending_BT = attending_BT & real_BT
        counts = counts_to_host(attending_BT.sum(1), context.lengths(x_BTD))
        context.trace.count(self.layer, "attending", counts)
        if context.cache is not None:
            context.trace.count(self.layer, "past", context.cache.lengths(self.layer, context.rows))
        middle_BTD = x_BTD
        for some in group_equal_sizes(counts):
            inner = GatheredTokens(x_BTD, attending_BT, some, context, layer=self.layer)
            attended_RKD = self.attended(inner)
            gate_RK = inner.gather(scores_BT).sigmoid()
            middle_BTD = inner.add_to(middle_BTD, attended_RKD * gate_RK[..., None])
        normed_BTD = self.block.feed_forward_norm(middle_BTD)
        return middle_BTD + self.block.feed_forward(normed_BTD, context)

    def attended(self, inner: GatheredTokens) -> Tensor:
        return self.block.attention(self.block.attention_norm(inner.x_RKD), inner.context)

    def ledger(self, workload: Workload) -> Ledger:
        lengths = workload.counts.get((self.layer, "attending"), workload.lengths)
        past = workload.counts.get((self.layer, "past"), workload.past)
        # Without attending tokens the router gets no gradient.
        scored = workload if any(lengths) else replace(workload, phase="forward")
        every = {"rows": workload.slots, "inner": self.model.width, "columns": 1}
        attention = self.block.attention
        return Ledger.sum(
            [
                matmul(scored, self.layer, "router", **every),
                self.block.feed_forward.ledger(workload),
                *(attention.ledger(workload.routed(some, past)) for some in group_equal_sizes(lengths)),
            ]
        )

    def nominal_counts(self, workload: Workload) -> dict[tuple[int, str], tuple[int, ...]]:
        return {}


def verdicts(layer: type[Right]) -> dict[int, Finding]:
    return {finding.probe: finding for finding in audit(model_of(layer))}


def test_routed_attention_caches_keys_of_routed_tokens_only() -> None:
    found = verdicts(Attends)
    assert [finding for finding in found.values() if finding.failed] == []
    assert (found[3].verdict, found[5].verdict) == ("passed", "not asked")


def test_attention_that_decodes_differently_fails_by_its_logits() -> None:
    """A decoded token does not see those that attended before it."""

    def attended(self: Attends, inner: GatheredTokens) -> Tensor:
        attended_RKD = Attends.attended(self, inner)
        return torch.zeros_like(attended_RKD) if inner.x_RKD.shape[1] == 1 else attended_RKD

    figure = failures(model_of(of(Attends, attended=attended)), 3)[3]
    assert "decoded tokens differ by" in figure


def test_a_partly_routed_block_that_shows_selected_fails_with_advice() -> None:
    def forward(self: Attends, x_BTD: Tensor, context: Context) -> Tensor:
        attending_BT = score(x_BTD, self.router).squeeze(-1) >= 0
        context.trace.show(self.layer, "selected", attending_BT)
        return Attends.forward(self, x_BTD, context)

    figure = failures(model_of(of(Attends, forward=forward)), 5)[5]
    told = re.match(r"(\d+) of (\d+) tokens shown as not selected are changed by their layer", figure)
    assert told is not None
    assert told[1] == told[2]
