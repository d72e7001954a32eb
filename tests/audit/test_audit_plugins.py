"""The audit of routers as plugin authors write them: mistakes are found, and told in the author's terms.

B sequences, T tokens, N tokens that are not padding, D model width, E experts.
"""

import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench import DepthRouter, ExpertRouter
from modbench.audit import Finding, findings
from modbench.audit.warmed import take_step
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.router import Router
from modbench.routing.tokens import Tokens

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
options = dataclass(frozen=True, kw_only=True)

#: What some of the routers below wrongly keep between passes.
TOTAL = {"mean": 0.0}


class Hidden:
    """Holds a mean where no comparison of attributes finds it."""

    def __init__(self) -> None:
        self.mean = 0.0


HIDDEN = Hidden()


def probed(router: Router, probe: int, seed: int = 0) -> Finding:
    """The finding of ``probe`` on ``router`` after a training step."""
    model = build_model(SHAPE, router, seed)
    take_step(model, torch.arange(36).reshape(2, 18))
    (finding,) = findings(model.eval(), only={probe}, seed=seed)
    return finding


@options
class Depth(DepthRouter):
    name: ClassVar[str] = "depth"
    capacity: float = 0.25


class Scorer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.linear(x_BTD).squeeze(-1)  # type: ignore[no-any-return]


@options
class LeaksAbove6(Depth):
    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        if not tokens.causal:
            return super().selected(scores_BT, tokens)
        return (scores_BT > 0) | (scores_BT > 6).flip(1)


@options
class LeaksWithABias(LeaksAbove6):
    """All of its scores are negative."""

    def scorer(self, model: ModelConfig) -> nn.Module:
        scorer = Scorer(model.width)
        nn.init.constant_(scorer.linear.bias, -9.0)
        return scorer


@options
class PoolsAbove8(ExpertRouter):
    name: ClassVar[str] = "pools"

    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return super().choose(torch.where((logits_NE > 8).any(), -logits_NE, logits_NE), tokens)


@pytest.mark.parametrize(
    ("router", "probe"),
    [
        (LeaksAbove6(), 1),
        (LeaksWithABias(), 1),
        (PoolsAbove8(), 1),
        (LeaksAbove6(), 2),
        (PoolsAbove8(), 2),
    ],
)
def test_a_leak_that_needs_large_scores_is_found(router: Router, probe: int) -> None:
    finding = probed(router, probe)
    assert finding.failed
    assert "scaled up to " in finding.figure


@options
class Assigns(ExpertRouter):
    """Gives each token its best three experts."""

    name: ClassVar[str] = "assigns"
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


@options
class Hashes(Depth):
    def scorer(self, model: ModelConfig) -> None:
        return None

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return tokens.ids % 5 == 0  # a fifth, not a quarter


@pytest.mark.parametrize(
    ("router", "verdict", "words"),
    [
        (
            Assigns(nominal=2.5),
            "failed",
            "layer 0 selects 3 and 3 experts per token in training; nominal",
        ),
        (Assigns(nominal=2), "failed", "nominal is 2"),
        (Assigns(), "passed", "nominal is 3"),
        (
            Selects(),
            "failed",
            "layer 1 selects 0.289 and 0.289 of the tokens in training; nominal is 0.25",
        ),
        (Selects(share=0.25), "passed", "nominal is 0.25"),
        (Learns(), "not asked", "in training, which losses or update learn; nominal is 0.25"),
        (Hashes(), "passed", "nominal is 0.25"),
    ],
    ids=lambda value: repr(value) if isinstance(value, Router) else None,
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
class KeptOnTheRouter(Depth):
    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return averaged(self, "_mean", scores_BT, tokens)


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


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in (1, 2))])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (KeptOnTheRouter, "training changes router._mean, which is not in state_dict"),
        (KeptInAnObject, ""),
        (KeptInAGlobal, "training changes global TOTAL of tests/audit/test_audit_plugins.py, which"),
        (KeptInAGlobalObject, ""),
    ],
)
def test_state_outside_of_modules_is_found(kind: type[Router], words: str, seed: int) -> None:
    TOTAL["mean"] = HIDDEN.mean = 0.0
    finding = probed(kind(), 10, seed)
    assert finding.failed
    assert words in finding.figure


def test_a_loaded_model_has_a_router_built_from_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object of `KeptInAnObject` is copied with the model, and so lost in no other test."""
    module = sys.modules["modbench.audit.state"]  # the package has a function of that name
    for test in ("_random_steps", "_changed_by_repetition"):
        monkeypatch.setattr(module, test, lambda subject: "")
    figure = probed(KeptInAnObject(), 10).figure
    assert "logits of the loaded model" in figure or "after resuming" in figure


@options
class WithDropout(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        class Dropped(Scorer):
            def forward(self, x_BTD: Tensor) -> Tensor:
                return F.dropout(super().forward(x_BTD), 0.5, training=True)

        return Dropped(model.width)


@options
class WithNoise(ExpertRouter):
    name: ClassVar[str] = "noise"

    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return super().choose(logits_NE + torch.randn_like(logits_NE), tokens)


@options
class WithNumpyNoise(Depth):
    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        if not tokens.training:
            return scores_BT > 0
        noise_BT = torch.from_numpy(np.random.default_rng().normal(size=tuple(scores_BT.shape)))
        return super().selected(scores_BT + noise_BT.to(scores_BT), tokens)


@options
class WithAPlainTensor(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        scorer = Scorer(model.width)
        scorer.shift_D = torch.randn(model.width)
        scorer.register_forward_pre_hook(lambda of, given: (given[0] + of.shift_D.to(given[0]),))
        return scorer


@options
class WithABuffer(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        class Centred(Scorer):
            def __init__(self, width: int) -> None:
                super().__init__(width)
                self.register_buffer("mean", torch.zeros(()))

            def forward(self, x_BTD: Tensor) -> Tensor:
                scores_BT = super().forward(x_BTD)
                if self.training:
                    self.mean.mul_(0.9).add_(0.1 * scores_BT.detach().mean())
                return scores_BT - self.mean

        return Centred(model.width)


@options
class WithBatchNorm(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        class Normalised(Scorer):
            def __init__(self, width: int) -> None:
                super().__init__(width)
                self.norm = nn.BatchNorm1d(width)

            def forward(self, x_BTD: Tensor) -> Tensor:
                return super().forward(self.norm(x_BTD.transpose(1, 2)).transpose(1, 2))

        return Normalised(model.width)


@pytest.mark.parametrize(
    ("router", "probe", "figure"),
    [
        (WithDropout(), 1, "two equal passes differ"),
        (WithDropout(), 10, "two equal passes (topk) differ"),
        (WithNoise(), 1, "two equal passes differ"),
        (WithNoise(), 10, "two equal passes (topk) differ"),
        (WithNumpyNoise(), 10, "differs after two equal training steps"),
        (WithAPlainTensor(), 10, "layers.1.router.shift_D differs, which is not in"),
        (WithABuffer(), 8, "buffer 'router.mean' of layer 1 changes"),
        (WithBatchNorm(), 4, "more than 1 value per channel"),
        (WithBatchNorm(), 8, "with the content of padding; router.norm is a BatchNorm"),
    ],
    ids=lambda value: value.name if isinstance(value, Router) else None,
)
def test_the_figure_names_the_cause(router: Router, probe: int, figure: str) -> None:
    finding = probed(router, probe)
    assert finding.failed
    assert figure in finding.figure


@pytest.mark.parametrize("router", [WithABuffer(), WithBatchNorm()], ids=["buffer", "batch norm"])
def test_a_buffer_that_a_scorer_writes_is_kept_from_a_repeated_pass(router: Router) -> None:
    assert not probed(router, 10).failed


def test_noise_of_numpy_is_no_loss_that_depends_on_padding() -> None:
    assert not probed(WithNumpyNoise(), 8).failed


@options
class WithoutAScorer(ExpertRouter):
    name: ClassVar[str] = "hash"
    top_k: int = 1
    balance: float = 0.0

    def scorer(self, model: ModelConfig) -> None:
        return None

    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return (tokens.ids % self.experts)[:, None], logits_NE[:, :1] + 1


def test_experts_without_a_scorer_have_no_router_to_teach() -> None:
    assert probed(WithoutAScorer(), 8).verdict == "not asked"


def test_trained_weights_are_asked_for_leaks_again() -> None:
    from modbench.sweep.steps.train import of_trained

    model: RoutedDecoder = build_model(SHAPE, PoolsAbove8())
    found = of_trained(model.eval())
    assert [(finding.probe, finding.verdict) for finding in found] == [(1, "failed"), (2, "failed")]
    assert all(finding.figure.startswith("trained weights: ") for finding in found)
