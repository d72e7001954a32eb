"""Reference implementations of the parts that all schemes share, from the papers' equations: one token,
head and query at a time, and only the parameters from the library. RMSNorm (Zhang and Sennrich 2019,
equation 4), rotary positions (Su et al. 2021, equation 34), attention (Vaswani et al. 2017, equation 1)
with grouped keys (Ainslie et al. 2023), SwiGLU (Shazeer 2020, equation 6), GELU (Hendrycks and Gimpel
2016).

T tokens, D width, P width of a head, F hidden width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

Rows = list[Tensor]  # the real tokens of each sequence, (T, D) or (T, V)


@dataclass
class Told:
    """The result of a loop on a batch: the sequences' rows; auxiliary losses, scaled, by layer and name;
    buffers that the pass leaves with other values, by name; and what the trace should show."""

    rows: Rows
    losses: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    moved: dict[str, Tensor] = field(default_factory=dict)
    shown: dict[tuple[int, str], Any] = field(default_factory=dict)

    def taken_in(self, other: "Told", where: str) -> "Told":
        """``other`` besides, of a module that is called ``where`` here."""
        self.losses |= other.losses
        self.moved |= {f"{where}.{name}": value for name, value in other.moved.items()}
        self.shown |= other.shown
        return self


#: What stands after attention: the part, its input, the rule.
FeedForward = Callable[[Any, Rows, str], Told]


def written(capacity: float, tokens: int, among: int = 1) -> int:
    """ceil(capacity * tokens / among) with the capacity as a decimal number: 0.07 of 100 is 7."""
    return min(tokens, math.ceil(Fraction(str(capacity)) * tokens / among))


def best(scores: Sequence[float], k: int) -> list[int]:
    """Indices of the k highest, the best first, ties to the lowest index."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def numbers(values: Any) -> Tensor:
    """Python's numbers in Python's precision."""
    return torch.tensor(values, dtype=torch.float64)


def average(part: Any, seen: Tensor) -> dict[str, Tensor]:
    """The exponential average behind a part's thresholds after one more value: the plain mean until
    that is steadier."""
    n = part.threshold.updates + 1
    rate = max(1 / n.item(), 1 - part.options.threshold_decay)
    value = (1 - rate) * part.threshold.value + rate * seen.detach()
    return {"threshold.updates": n, "threshold.value": value}


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension."""
    e = torch.exp(x - x.max(-1, keepdim=True).values)
    return e / e.sum(-1, keepdim=True)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def unit(x_D: Tensor, epsilon: float) -> Tensor:
    return x_D / torch.sqrt((x_D * x_D).sum() / len(x_D) + epsilon)


def normalised(norm: Any, model: Any, x_TD: Tensor) -> Tensor:
    return torch.stack([unit(x_D, model.norm_epsilon) * norm.weight for x_D in x_TD])


def rotated(x_TP: Tensor, positions: Sequence[int], base: float) -> Tensor:
    """Each pair (i, i + P/2), a complex number, turned by position * base^(-2i/P). Angles are float32
    in every model."""
    half = x_TP.shape[1] // 2
    frequencies = base ** -(torch.arange(half, dtype=torch.float32) / half)
    angles = [position * frequencies for position in positions]
    turns = torch.stack([torch.complex(a.cos().double(), a.sin().double()) for a in angles])
    pairs = torch.complex(x_TP[:, :half], x_TP[:, half:]) * turns
    return torch.cat((pairs.real, pairs.imag), dim=1)


def attention(part: Any, x_TD: Tensor, positions: Sequence[int]) -> Tensor:
    """Each token attends to itself and to those that stand before it here."""
    width, group = part.head_width, part.heads // part.key_heads
    projected = (x_TD @ part.qkv.weight.T).split(width, dim=1)
    queries, keys = projected[: part.heads], projected[part.heads :][: part.key_heads]
    if part.model.qk_norm:
        queries, keys = (
            [normalised(norm, part.model, head_TP) for head_TP in heads]
            for norm, heads in ((part.q_norm, queries), (part.k_norm, keys))
        )
    queries, keys = (
        [rotated(head_TP, positions, part.model.rope_base) for head_TP in heads]
        for heads in (queries, keys)
    )
    values = projected[part.heads + part.key_heads :]
    mixed = []
    for head, q_TP in enumerate(queries):
        k_TP, v_TP, rows = keys[head // group], values[head // group], []
        for t, q_P in enumerate(q_TP.unbind()):
            weights = softmax(k_TP[: t + 1] @ q_P / math.sqrt(width))
            rows.append(weights @ v_TP[: t + 1])
        mixed.append(torch.stack(rows))
    return torch.cat(mixed, dim=1) @ part.out.weight.T


def mlp(kind: str, up: Tensor, down: Tensor, x_TD: Tensor) -> Tensor:
    up_TF = x_TD @ up.T
    if kind == "gelu":
        return gelu(up_TF) @ down.T
    hidden = up_TF.shape[1] // 2
    gate_TF, value_TF = up_TF[:, :hidden], up_TF[:, hidden:]
    return (gate_TF * sigmoid(gate_TF) * value_TF) @ down.T


def dense(part: Any, rows: Rows, rule: str) -> Told:
    """The plain MLP."""
    return Told([mlp(part.model.mlp, part.up.weight, part.down.weight, x_TD) for x_TD in rows])


def block_adds(
    block: Any, rows: Rows, positions: list[list[int]], rule: str, feed_forward: FeedForward = dense
) -> Told:
    """The update that a pre-norm block adds to the residual stream."""
    model = block.attention.model
    attended = [
        attention(block.attention, normalised(block.attention_norm, model, x_TD), at)
        for x_TD, at in zip(rows, positions, strict=True)
    ]
    middle = [
        normalised(block.feed_forward_norm, model, x_TD + a_TD)
        for x_TD, a_TD in zip(rows, attended, strict=True)
    ]
    inner = feed_forward(block.feed_forward, middle, rule)
    added = [a_TD + f_TD for a_TD, f_TD in zip(attended, inner.rows, strict=True)]
    return Told(added).taken_in(inner, "feed_forward")
