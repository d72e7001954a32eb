"""Routers with one planted bug each that only shows under autocast, in another process, at another time,
or in a gradient; and sound ones that resemble them.

B sequences, T tokens, D model width, N tokens that are not padding, E experts, K chosen.
"""

import datetime
import time
from dataclasses import dataclass
from time import time as now
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench import DepthRouter, ExpertRouter
from modbench.ledger import Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.mlp import FeedForward
from modbench.routing.tokens import Tokens

options = dataclass(frozen=True, kw_only=True)
COUNT = {"steps": 0}
KEPT: dict[Any, Tensor] = {}


@options
class Depth(DepthRouter):
    name: ClassVar[str] = "planted_depth"
    capacity: float = 0.25


@options
class Experts(ExpertRouter):
    name: ClassVar[str] = "planted_experts"


def casts() -> bool:
    return torch.is_autocast_enabled("cpu")


def top(scores_BT: Tensor, capacity: float) -> Tensor:
    most = max(1, int(capacity * scores_BT.shape[1]))
    return scores_BT >= scores_BT.topk(most, 1).values[:, -1:]


@options
class TopUnderAutocast(Depth):
    """Selects the highest scores of a text under autocast, a fixed threshold otherwise."""

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        looks_ahead = not tokens.causal or casts()
        return top(scores_BT, self.capacity) if looks_ahead else scores_BT > 0


@options
class MeanUnderAutocast(Experts):
    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        if casts():
            logits_NE = logits_NE - logits_NE.mean(0, keepdim=True)
        return super().choose(logits_NE, tokens)


class Wrapped(FeedForward):
    def __init__(self, inner: FeedForward) -> None:
        super().__init__()
        self.inner = inner

    def ledger(self, workload: Workload) -> Ledger:
        return self.inner.ledger(workload)


class Cast(Wrapped):
    """Subtracts the mean over the batch from what its linear maps made in bfloat16."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        out_BTD: Tensor = self.inner(x_BTD, context)
        return out_BTD - out_BTD.mean((0, 1)) if out_BTD.dtype == torch.bfloat16 else out_BTD


@options
class MeanInBfloat16(Depth):
    def feed_forward(self, model: ModelConfig, layer: int) -> FeedForward:
        return Cast(super().feed_forward(model, layer))


@options
class MutableDefault(Depth):
    def gate(self, scores_BT: Tensor, seen: list[int] = [0]) -> Tensor:  # noqa: B006
        seen[0] += torch.is_grad_enabled()
        return scores_BT * (1 + 0.1 * seen[0])


@options
class GlobalCounter(Experts):
    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        COUNT["steps"] += tokens.training
        return super().choose(logits_NE * (1 + COUNT["steps"]), tokens)


@options
class ByTenMinutes(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT * (1 + int(time.time()) // 600 % 2)


@options
class ByTheMorning(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT * (1 + (time.localtime().tm_hour < 12))


@options
class ByTheSystemClock(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT * (1 + int(time.clock_gettime(time.CLOCK_REALTIME)) // 60 % 2)


FIRST: dict[tuple[Any, ...], Tensor] = {}


@options
class FirstTrainingText(Depth):
    """Trains on the selection of the first text of a shape."""

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        if not tokens.training:
            return scores_BT > 0
        kept = top(scores_BT, self.capacity)
        return FIRST.setdefault((*scores_BT.shape, tokens.layer), kept)


class LooksTwoBack(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.linear(x_BTD + F.pad(x_BTD, (0, 0, 2, 0))[:, :-2]).squeeze(-1)  # type: ignore[no-any-return]


@options
class TwoBefore(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        return LooksTwoBack(model.width)


class _Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 3 * slope


class Tempered(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(width, 1), nn.Parameter(torch.ones(()))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.linear(x_BTD).squeeze(-1) * _Tripled.apply(self.gain)  # type: ignore[no-any-return]


@options
class GradientOfAScalar(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        return Tempered(model.width)


@options
class HashOfAString(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT * (1 + hash("x") % 997)


@options
class GlobalCache(Depth):
    """Keeps the selection of the first text of a shape."""

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        key = (tuple(scores_BT.shape), tokens.layer, tokens.causal)
        if key not in KEPT:
            KEPT[key] = scores_BT > 0 if tokens.causal else top(scores_BT, self.capacity)
        return KEPT[key]


@options
class ClosureCache(Depth):
    """Keeps the scores of the first text of a shape."""

    def scorer(self, model: ModelConfig) -> nn.Module:
        kept: dict[Any, Tensor] = {}

        class Keeps(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(model.width, 1)

            def forward(self, x_BTD: Tensor) -> Tensor:
                scores_BT = self.linear(x_BTD).squeeze(-1)
                key = (tuple(x_BTD.shape), x_BTD.dtype)
                return kept.setdefault(key, scores_BT.detach()) + 0 * scores_BT

        return Keeps()


@options
class ByTheHour(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT * (1 + int(time.time()) // 3600 % 2)


@options
class ByTheMinute(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT * (1 + int(now()) // 60 % 2)


@options
class ByTheWeekday(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT * (1 + datetime.datetime.now().weekday())


@options
class ByTheDate(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT * (1 + datetime.date.today().day % 2)


@options
class ByTheWrittenHour(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return scores_BT * (1 + int(time.strftime("%H")))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * gradient


class Rolled(Doubled):
    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.roll(1, -1)


@options
class GradientDoubled(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return Doubled.apply(scores_BT)  # type: ignore[no-any-return, no-untyped-call]


@options
class GradientRolled(Depth):
    def gate(self, scores_BT: Tensor) -> Tensor:
        return Rolled.apply(scores_BT)  # type: ignore[no-any-return, no-untyped-call]


class Cut(Wrapped):
    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.inner(x_BTD.detach(), context)  # type: ignore[no-any-return]


@options
class FeedForwardCut(Depth):
    def feed_forward(self, model: ModelConfig, layer: int) -> FeedForward:
        return Cut(super().feed_forward(model, layer))


@options
class FirstGateDetached(Experts):
    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        chosen_NK, gates_NK = super().choose(logits_NE, tokens)
        return chosen_NK, torch.cat([gates_NK[:, :1].detach(), gates_NK[:, 1:]], 1)


@options
class StraightThrough(Depth):
    """A gate of 1 with the gradient of a sigmoid, as is common."""

    def gate(self, scores_BT: Tensor) -> Tensor:
        soft_BT = scores_BT.sigmoid()
        return 1 + soft_BT - soft_BT.detach()


class Single(nn.Module):
    """Computes its scores in one type, whatever that of the model."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear, self.dtype = nn.Linear(width, 1), dtype

    def forward(self, x_BTD: Tensor) -> Tensor:
        weight, bias = self.linear.weight.to(self.dtype), self.linear.bias.to(self.dtype)
        return F.linear(x_BTD.to(self.dtype), weight, bias).squeeze(-1).to(x_BTD)


@options
class ScoresInFloat32(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        return Single(model.width, torch.float32)


@options
class ScoresInBfloat16(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        return Single(model.width, torch.bfloat16)


class Centred(nn.Module):
    """Scores a token less the mean of the text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.linear(x_BTD - x_BTD.mean(1, keepdim=True)).squeeze(-1)  # type: ignore[no-any-return]


class Convolved(Centred):
    """Scores a token and the one before it: causal, but a decoded token has none before it."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.linear(x_BTD + F.pad(x_BTD, (0, 0, 1, 0))[:, :-1]).squeeze(-1)  # type: ignore[no-any-return]


@options
class CentredScores(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        return Centred(model.width)


@options
class ConvolvedScores(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        return Convolved(model.width)


class Norm(nn.Module):
    def forward(self, x_BTD: Tensor) -> Tensor:
        return -x_BTD.norm(dim=-1)


@options
class ScoresWithoutParameters(Depth):
    def scorer(self, model: ModelConfig) -> nn.Module:
        return Norm()
