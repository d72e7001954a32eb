"""The audit of routers as plugin authors write them: mistakes are found, and told in the author's terms.

B sequences, T tokens, N tokens that are not padding, D model width, E experts.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutants import SHAPE, probed
from torch import Tensor, nn

from modbench import DepthRouter, ExpertRouter
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.router import Router
from modbench.routing.tokens import Tokens

options = dataclass(frozen=True, kw_only=True)

#: What some of the routers below wrongly keep between passes.
TOTAL = {"mean": 0.0}


class Hidden:
    """Holds a mean where no comparison of attributes finds it."""

    def __init__(self) -> None:
        self.mean = 0.0


HIDDEN = Hidden()


@options
class Depth(DepthRouter):
    name: ClassVar[str] = "depth"
    capacity: float = 0.25


@options
class Experts(ExpertRouter):
    name: ClassVar[str] = "experts"


def made(base: type[Router], **methods: Any) -> Router:
    """A router of class ``base`` that overrides ``methods``."""
    return options(type("Made", (base,), methods))()


class Scorer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.linear(x_BTD).squeeze(-1)  # type: ignore[no-any-return]


def above_6(self: Depth, scores_BT: Tensor, tokens: Tokens) -> Tensor:
    if not tokens.causal:
        return Depth.selected(self, scores_BT, tokens)
    return (scores_BT > 0) | (scores_BT > 6).flip(1)


def biased(self: Depth, model: ModelConfig) -> nn.Module:
    """All of its scores are negative."""
    scorer = Scorer(model.width)
    nn.init.constant_(scorer.linear.bias, -9.0)
    return scorer


def pooled(self: Experts, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    return Experts.choose(self, torch.where((logits_NE > 8).any(), -logits_NE, logits_NE), tokens)


@pytest.mark.parametrize(
    "router",
    [made(Depth, selected=above_6, scorer=biased), made(Experts, choose=pooled)],
    ids=["depth", "experts"],
)
def test_a_leak_that_needs_large_scores_is_found(router: Router) -> None:
    finding = probed(router, 1)
    assert finding.failed
    assert "scaled up to " in finding.figure


@options
class Assigns(Experts):
    """Gives each token its best three experts."""

    expert_width: int | None = 16
    nominal: float = 3.0

    def assign(self, logits_NE: Tensor, tokens: Tokens) -> Tensor:
        scores_NE = logits_NE.softmax(dim=-1)
        return scores_NE * (scores_NE >= scores_NE.topk(3).values[:, -1:])

    def nominal_experts_per_token(self) -> float:
        return self.nominal


@options
class Selects(Depth):
    """Selects 29 % of the tokens in training, 1.16 times the capacity."""

    share: float = 0.29

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        if tokens.causal:
            return scores_BT > 0
        most = scores_BT.topk(max(1, round(self.share * scores_BT.shape[1]))).values[:, -1:]
        return scores_BT >= most


@options
class Learns(Selects):
    def losses(self, scores_N: Tensor, selected_N: Tensor, tokens: Tokens) -> dict[str, Tensor]:
        return {"density": (scores_N.sigmoid().mean() - self.capacity) ** 2}


def a_fifth(self: Depth, scores_BT: Tensor, tokens: Tokens) -> Tensor:
    return tokens.ids % 5 == 0


@pytest.mark.parametrize(
    ("router", "verdict", "words"),
    [
        (Assigns(nominal=2.5), "failed", "selects 3 and 3 experts per token in training; nominal"),
        (Assigns(), "passed", "nominal is 3"),
        (Selects(), "failed", "selects 0.289 and 0.289 of the tokens in training; nominal is 0.25"),
        (Selects(share=0.25), "passed", "nominal is 0.25"),
        (Learns(), "not asked", "which losses or update learn; nominal is 0.25"),
        (made(Depth, scorer=lambda *_: None, selected=a_fifth), "passed", "nominal is 0.25"),
        (
            made(Experts, assign=lambda self, logits_NE, tokens: logits_NE.softmax(dim=-1)),
            "failed",
            "training, and nominal is top_k, 2 (limit: a factor of 1.1 in both texts); define",
        ),
    ],
)
def test_realised_numbers_of_overridden_rules_are_compared_with_nominal(
    router: Router, verdict: str, words: str
) -> None:
    finding = probed(router, 4)
    assert (finding.verdict, words in finding.figure) == (verdict, True), finding.figure


def averaged(holder: Any, name: str, scores_BT: Tensor, tokens: Tokens) -> Tensor:
    """Tokens above the moving average of the scores, which ``holder`` keeps under ``name``."""
    values = holder if isinstance(holder, dict) else holder.__dict__
    mean = values.get(name, 0.0)
    if tokens.training:
        values[name] = 0.9 * mean + 0.1 * float(scores_BT.detach().mean())
    return scores_BT > mean


@options
class KeptInAnObject(Depth):
    kept: Hidden = field(default_factory=Hidden, init=False)

    def options(self) -> dict[str, Any]:
        return {"capacity": self.capacity}

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return averaged(self.kept, "mean", scores_BT, tokens)


@options
class KeptInAGlobal(Depth):
    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return averaged(TOTAL, "mean", scores_BT, tokens)


@options
class KeptInAGlobalObject(Depth):
    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return averaged(HIDDEN, "mean", scores_BT, tokens)


@pytest.mark.parametrize(
    ("router", "words"),
    [
        (
            lambda: made(Depth, selected=lambda self, s, tokens: averaged(self, "_mean", s, tokens)),
            "logits of the loaded model (topk) differ",
        ),
        (KeptInAnObject, ""),
        (KeptInAGlobal, "differs after two equal training steps"),
        (KeptInAGlobalObject, ""),
    ],
    ids=["router", "object", "global", "global object"],
)
def test_state_outside_of_modules_is_found(router: Callable[[], Router], words: str) -> None:
    TOTAL["mean"] = HIDDEN.mean = 0.0
    finding = probed(router(), 10)
    assert finding.failed
    assert words in finding.figure


def test_a_loaded_model_has_a_router_built_from_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object of `KeptInAnObject` is copied with the model, and so lost in no other test."""
    module = sys.modules["modbench.audit.state"]  # the package has a function of that name
    for test in ("_random_steps", "_changed_by_repetition"):
        monkeypatch.setattr(module, test, lambda subject: "")
    figure = probed(KeptInAnObject(), 10).figure
    assert "logits of the loaded model" in figure or "after resuming" in figure


class Dropped(Scorer):
    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(super().forward(x_BTD), 0.5, training=True)


class Centred(Scorer):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x_BTD: Tensor) -> Tensor:
        scores_BT = super().forward(x_BTD)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * scores_BT.detach().mean())
        return scores_BT - self.mean


class Normalised(Scorer):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return super().forward(self.norm(x_BTD.transpose(1, 2)).transpose(1, 2))


class Shifted(Scorer):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.shift_D = torch.randn(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return super().forward(x_BTD + self.shift_D.to(x_BTD))


def scored_by(kind: type[Scorer]) -> Router:
    return made(Depth, scorer=lambda self, model: kind(model.width))


def noisy(self: Experts, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    return Experts.choose(self, logits_NE + torch.randn_like(logits_NE), tokens)


def numpy_noise(self: Depth, scores_BT: Tensor, tokens: Tokens) -> Tensor:
    if not tokens.training:
        return scores_BT > 0
    noise_BT = torch.from_numpy(np.random.default_rng().normal(size=tuple(scores_BT.shape)))
    return Depth.selected(self, scores_BT + noise_BT.to(scores_BT), tokens)


def by_id(self: Experts, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    return (tokens.ids % self.experts)[:, None], logits_NE[:, :1] + 1


ROUTERS: dict[str, Callable[[], Router]] = {
    "dropout": lambda: scored_by(Dropped),
    "noise": lambda: made(Experts, choose=noisy),
    "numpy": lambda: made(Depth, selected=numpy_noise),
    "tensor": lambda: scored_by(Shifted),
    "buffer": lambda: scored_by(Centred),
    "batch norm": lambda: scored_by(Normalised),
    "no scorer": lambda: made(
        Experts, top_k=1, balance=0.0, __annotations__={"top_k": int, "balance": float},
        scorer=lambda self, model: None, choose=by_id,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("router", "probe", "verdict", "words"),
    [
        ("dropout", 1, "failed", "two equal passes (topk) differ"),
        ("noise", 10, "failed", "two equal passes (topk) differ"),
        ("numpy", 10, "failed", "differs after two equal training steps"),
        ("numpy", 8, "passed", ""),  # is no loss that depends on padding
        ("tensor", 10, "failed", "logits of the loaded model (topk) differ"),
        ("buffer", 8, "failed", "buffer 'router.mean' of layer 1 changes"),
        ("buffer", 10, "passed", ""),  # is kept from a repeated pass
        ("batch norm", 4, "failed", "more than 1 value per channel"),
        ("batch norm", 8, "failed", "with the content of padding; router.norm is a BatchNorm"),
        ("batch norm", 10, "passed", ""),
        ("no scorer", 8, "not asked", ""),
    ],
)
def test_the_figure_names_the_cause(router: str, probe: int, verdict: str, words: str) -> None:
    finding = probed(ROUTERS[router](), probe)
    assert finding.verdict == verdict
    assert words in finding.figure


def test_trained_weights_are_asked_for_leaks_again() -> None:
    from modbench.sweep.steps.train import of_trained

    model: RoutedDecoder = build_model(SHAPE, made(Experts, choose=pooled))
    found = of_trained(model.eval())
    assert [(finding.probe, finding.verdict) for finding in found] == [(1, "failed"), (2, "failed")]
    assert all(finding.figure.startswith("trained weights: ") for finding in found)
