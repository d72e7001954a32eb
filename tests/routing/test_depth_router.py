"""DepthRouter: what an author overrides, and what the base class does with it.

B sequences, T tokens.
"""

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modbench import DepthRouter, Router
from modbench.audit import audit
from modbench.audit import findings as findings_of
from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.routers.token_choice import TokenChoice
from modbench.routing.build import build_model
from modbench.routing.ema import EMA
from modbench.routing.scorer import LinearScorer
from modbench.routing.tokens import Tokens

sys.path.append(str(Path(__file__).parents[1] / "routers"))
import layer_checks as checks

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, kv_heads=2, mlp="gelu", mlp_width=64)


@dataclass(frozen=True, kw_only=True)
class Plain(DepthRouter):
    name = "plain"

    capacity: float = 0.25


@dataclass(frozen=True, kw_only=True)
class MLPScored(Plain):
    def scorer(self, model: ModelConfig) -> nn.Module:
        hidden = nn.Linear(model.width, 8)
        return nn.Sequential(hidden, nn.GELU(), nn.Linear(8, 1), nn.Flatten(-2))

    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT.sigmoid()


@dataclass(frozen=True, kw_only=True)
class AboveMean(Plain):
    """The number of selected tokens depends on the scores."""

    capacity: float = 0.5

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return scores_BT > 0


@dataclass(frozen=True, kw_only=True)
class EveryEighth(DepthRouter):
    name = "every_eighth"

    def scorer(self, model: ModelConfig) -> None:
        return None

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return tokens.positions % 8 == 0


@dataclass(frozen=True, kw_only=True)
class WithExperts(Plain):
    def feed_forward(self, model: ModelConfig, layer: int) -> nn.Module:
        return TokenChoice(experts=4).feed_forward(model, layer)


@dataclass(frozen=True, kw_only=True)
class WithModule(Plain):
    def feed_forward(self, model: ModelConfig, layer: int) -> nn.Module:
        return nn.Sequential(nn.Linear(model.width, 24), nn.ReLU(), nn.Linear(24, model.width))


class Averaging(LinearScorer):
    def __init__(self, width: int) -> None:
        super().__init__(width, None)
        self.cut = EMA(torch.zeros(()), 0.9)


@dataclass(frozen=True, kw_only=True)
class Stateful(Plain):
    """Selects what lies above a moving average of the scores."""

    capacity: float = 0.5
    causal: str = field(init=False, default="predictor")

    def scorer(self, model: ModelConfig) -> nn.Module:
        return Averaging(model.width)

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return scores_BT >= tokens.state["cut.value"].to(scores_BT.dtype)

    def losses(self, scores_N: Tensor, selected_N: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        return {"size": 0.01 * scores_N.square().mean()}

    def update(self, scorer: nn.Module, scores_N: Tensor, selected_N: Tensor, tokens: Tokens) -> None:
        scorer.cut.update(scores_N.mean())


ROUTERS = [Plain(), MLPScored(), AboveMean(), EveryEighth(capacity=0.125), WithExperts(), WithModule()]
ROUTERS += [Stateful(), Plain(causal="aux_bce"), Plain(causal="ema_threshold", every=1)]


@dataclass(frozen=True)
class Made(checks.Scheme):
    made: Router = field(default_factory=Plain)

    def built(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
        return build_model(self.shape, self.made).to(device, dtype)


def scheme(router: Router) -> Made:
    return Made(router.name, {}, SHAPE, router)


#: Those unlike every built-in scheme.
AUDITED = [MLPScored(), AboveMean(), EveryEighth(capacity=0.125), WithModule(), Stateful()]
routers = pytest.mark.parametrize("router", ROUTERS, ids=lambda router: type(router).__name__)


@routers
def test_the_ledger_equals_what_is_executed(router: Router) -> None:
    checks.costs_what_it_selects(scheme(router), torch.float32)


@pytest.mark.parametrize("router", AUDITED, ids=lambda router: type(router).__name__)
def test_it_passes_the_audit(router: Router) -> None:
    findings = audit(scheme(router).warmed(), shapes=((3, 31),), trained=(2, 17))
    assert [f"{f.name}: {f.figure}" for f in findings if f.failed] == []


@routers
def test_a_repeated_pass_decides_as_the_first_one_did(router: Router) -> None:
    """With activation checkpointing, gradients and state are those without it."""
    plain, tokens_BT = scheme(router).warmed().train(), torch.randint(97, (2, 33))
    again = copy.deepcopy(plain)
    checks.train(plain, tokens_BT)
    checks.train(again, tokens_BT, checkpoint=True)
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    for one, other in zip(plain.buffers(), again.buffers(), strict=True):
        assert torch.equal(one, other)


def test_only_what_is_counted_says_so() -> None:
    sources = {type(router).__name__: scheme(router).built().flops_source for router in ROUTERS}
    counted = {name for name, source in sources.items() if source == "counted"}
    assert counted == {"MLPScored", "WithModule"}


@dataclass(frozen=True, kw_only=True)
class Noisy(Plain):
    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        if tokens.causal:
            return scores_BT > 0
        return torch.rand(scores_BT.shape, generator=tokens.generator) < 0.25


def test_noise_is_repeated_by_checkpointing_and_new_in_the_next_step() -> None:
    model, seen = scheme(Noisy()).built().train(), []
    x_BTD = torch.randn(2, 33, 32)
    layer = model.layers[1]
    for _ in range(2):
        context = Context()
        layer(x_BTD, context)
        first_BT = context.trace.tensors[1, "selected"]
        with context.trace.repeating():
            out_BTD = layer(x_BTD, context)
        assert torch.equal((out_BTD != x_BTD).any(-1), first_BT)
        seen.append(first_BT)
    assert not torch.equal(*seen)
    again = scheme(Noisy()).built().train().layers[1]
    again(x_BTD, context := Context())
    assert torch.equal(context.trace.tensors[1, "selected"], seen[0])


def bad(**methods: object) -> Router:
    kind = type("Bad", (Plain,), {"name": "bad", **methods})
    return dataclass(frozen=True, kw_only=True)(kind)()


@pytest.mark.parametrize(
    ("router", "words"),
    [
        (bad(scorer=lambda self, model: nn.Linear(32, 2)), r"scorer .*returned a tensor of shape"),
        (bad(scorer=lambda self, model: 3), "scorer .*returned int; expected a torch.nn.Module"),
        (bad(scorer=lambda self, model: None), "scorer returns None and selected is not overridden"),
        (
            bad(gate=lambda self, s: s[..., None]),
            r"gate .*\(2, 9, 1\).*; expected floating-point",
        ),
        (
            bad(selected=lambda self, s, tokens: s),
            r"selected .*; expected bool values",
        ),
        (bad(losses=lambda self, s, m, tokens: s), "losses .*; expected a dict"),
        (bad(feed_forward=lambda self, model, layer: 3), r"feed_forward \(.*\) returned int"),
    ],
)
def test_what_hooks_return_is_checked(router: Router, words: str) -> None:
    with pytest.raises(UserError, match=f"router 'bad': {words}") as raised:
        build_model(SHAPE, router)(torch.zeros(2, 9, dtype=torch.long), Context())
    assert "returned" not in words or "feed_forward" in words or Path(__file__).name in str(raised.value)


@dataclass(frozen=True, kw_only=True)
class LateTokensFirst(Plain):
    """Top-k of other scores in training, a threshold when predicting."""

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        if tokens.causal:
            return scores_BT > 0
        return super().selected(scores_BT + 100 * tokens.positions, tokens)


def test_the_default_selection_can_be_called_with_other_scores() -> None:
    layer = scheme(LateTokensFirst()).built().train().layers[1]
    context = Context(lengths_B=torch.tensor([8, 4]))
    layer(torch.randn(2, 8, 32), context)
    assert context.trace.tensors[1, "selected"].nonzero().tolist() == [[0, 6], [0, 7], [1, 3]]


def test_the_default_selection_may_not_predict() -> None:
    router = bad(selected=lambda self, s, tokens: DepthRouter.selected(self, s, tokens))
    model, tokens_BT = build_model(SHAPE, router), torch.zeros(2, 9, dtype=torch.long)
    model(tokens_BT, Context())
    with pytest.raises(UserError, match="top-k may not predict"):
        model(tokens_BT, Context(selection="causal"))


@dataclass(frozen=True, kw_only=True)
class Normalised(Plain):
    """A scorer that has no finite scores for weights of zero."""

    def scorer(self, model: ModelConfig) -> nn.Module:
        linear = nn.utils.parametrizations.weight_norm(nn.Linear(model.width, 1))
        return nn.Sequential(linear, nn.Flatten(-2))


def test_a_scorer_without_scores_for_weights_of_zero_passes_the_audit() -> None:
    findings = findings_of(scheme(Normalised()).warmed(), shapes=((3, 31),), only={4, 6})
    assert [f"{f.name}: {f.figure}" for f in findings if f.failed] == []
