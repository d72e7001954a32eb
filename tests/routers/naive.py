"""Plain twins of what schemes are made of, from the papers' equations: loops over tokens and heads.

T tokens, K selected, D width, P width of a head, E experts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def best(scores: Tensor, k: int) -> list[int]:
    """Indices of the k highest, ties to the lowest index, in ascending order."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))[:k])


def uniform(*keys: int) -> float:
    """The hash behind random selections, on Python's integers, which can't overflow."""
    bits = 0
    for key in keys:
        bits = (bits + key + 0x9E3779B9) % 2**32
        for _ in range(2):
            bits = (bits ^ bits >> 16) * 0x45D9F3B % 2**32
        bits ^= bits >> 16
    return (bits >> 8) / 2**24


def normalised(norm: Any, x_TD: Tensor) -> Tensor:
    return torch.stack([x / (x.square().mean() + norm.eps).sqrt() * norm.weight for x in x_TD])


def rotated(x_TP: Tensor, positions: Sequence[int], base: float) -> Tensor:
    """Each pair (i, i + P/2) turned by position * base^(-2i/P), in float32 as models have it."""
    half = x_TP.shape[1] // 2
    frequencies = base ** -(torch.arange(half, dtype=torch.float32) / half)
    rows = []
    for x_P, position in zip(x_TP, positions, strict=True):
        angles = position * frequencies
        turn = torch.complex(angles.cos().to(x_P.dtype), angles.sin().to(x_P.dtype))
        pairs = torch.complex(x_P[:half], x_P[half:]) * turn
        rows.append(torch.cat((pairs.real, pairs.imag)))
    return torch.stack(rows)


def attention(part: Any, x_TD: Tensor, positions: Sequence[int]) -> Tensor:
    """Each token attends to itself and to those that stand before it here."""
    width, group = part.head_width, part.heads // part.key_heads
    columns = (x_TD @ part.qkv.weight.T).split(width, dim=1)
    queries, keys = columns[: part.heads], columns[part.heads : part.heads + part.key_heads]
    values = columns[part.heads + part.key_heads :]
    later_TT = torch.ones(len(x_TD), len(x_TD), dtype=torch.bool).triu(1)
    heads = []
    for head, q_TP in enumerate(queries):
        k_TP, v_TP = keys[head // group], values[head // group]
        q_TP, k_TP = (rotated(each, positions, part.model.rope_base) for each in (q_TP, k_TP))
        weights_TT = (q_TP @ k_TP.T / math.sqrt(width)).masked_fill(later_TT, -torch.inf).softmax(1)
        heads.append(weights_TT @ v_TP)
    return torch.cat(heads, dim=1) @ part.out.weight.T


def mlp(kind: str, up: Tensor, down: Tensor, x_D: Tensor) -> Tensor:
    if kind == "gelu":
        return down @ F.gelu(up @ x_D)
    gate, value = (up @ x_D).chunk(2)
    return down @ (F.silu(gate) * value)


def dense(part: Any, x_TD: Tensor) -> Tensor:
    return torch.stack([mlp(part.model.mlp, part.up.weight, part.down.weight, x_D) for x_D in x_TD])


def expert(bank: Any, number: int, x_D: Tensor) -> Tensor:
    return mlp(bank.model.mlp, bank.up[number], bank.down[number], x_D)


FeedForward = Callable[[Any, Tensor], Tensor]


def block_adds(
    block: Any, x_TD: Tensor, positions: Sequence[int], feed_forward: FeedForward = dense
) -> Tensor:
    """f of equation 1: what a pre-norm block adds to the residual stream."""
    attended_TD = attention(block.attention, normalised(block.attention_norm, x_TD), positions)
    middle_TD = normalised(block.feed_forward_norm, x_TD + attended_TD)
    return attended_TD + feed_forward(block.feed_forward, middle_TD)


def experts_choose(part: Any, x_TD: Tensor) -> Tensor:
    """Zhou et al. 2022, equations 1 and 2, on one pool."""
    options = part.options
    scores_TE = torch.stack([(part.router @ x_D).softmax(0) for x_D in x_TD])
    out_TD = [torch.zeros_like(x_D) for x_D in x_TD]
    k = math.ceil(len(x_TD) * options.capacity / options.experts)
    for number in range(options.experts):
        for t in best(scores_TE[:, number], k):
            out_TD[t] = out_TD[t] + scores_TE[t, number] * expert(part.bank, number, x_TD[t])
    return torch.stack(out_TD)


def experts_above(part: Any, x_TD: Tensor) -> Tensor:
    """Each expert takes the tokens that score no less than its threshold."""
    out_TD = []
    for x_D in x_TD:
        scores_E = (part.router @ x_D).softmax(0)
        out_D = torch.zeros_like(x_D)
        for number, score in enumerate(scores_E):
            if score >= part.threshold.value[number]:
                out_D = out_D + score * expert(part.bank, number, x_D)
        out_TD.append(out_D)
    return torch.stack(out_TD)


def tokens_choose(part: Any, x_TD: Tensor) -> Tensor:
    """The k likeliest experts of each token, weighted by their probabilities, which sum to 1."""
    out_TD = []
    for x_D in x_TD:
        probabilities_E = (part.router @ x_D).softmax(0)
        chosen = best(probabilities_E, part.options.top_k)
        out_D = torch.zeros_like(x_D)
        for number in chosen:
            weight = probabilities_E[number] / probabilities_E[chosen].sum()
            out_D = out_D + weight * expert(part.bank, number, x_D)
        out_TD.append(out_D)
    return torch.stack(out_TD)


def depth_routed(
    layer: Any, x_TD: Tensor, tokens: Sequence[int], *, row: int, rule: str, feed_forward=dense
) -> Tensor:
    """Raposo et al. 2024, equation 1, on the sequence that is ``row`` of its batch."""
    chosen = depth_selected(layer, x_TD, tokens, row=row, rule=rule)
    out_TD = list(x_TD)
    if not chosen:
        return torch.stack(out_TD)
    inside_KD = x_TD[torch.tensor(chosen)]
    adds_KD = block_adds(layer.block, inside_KD, chosen, feed_forward)
    for t, adds_D in zip(chosen, adds_KD, strict=True):
        f_D = adds_D + x_TD[t] if layer.options.residual == "full" else adds_D
        r = 1.0
        if layer.options.scores == "learned":
            r = (layer.router @ x_TD[t]).squeeze()
            if layer.options.gate != "linear":
                r = 1 / (1 + torch.exp(-r)) * {"sigmoid": 1, "scaled_sigmoid": 2}[layer.options.gate]
        out_TD[t] = r * f_D + x_TD[t]
    return torch.stack(out_TD)


def depth_selected(layer: Any, x_TD: Tensor, tokens: Sequence[int], *, row: int, rule: str) -> list[int]:
    """Who enters: of the training rule the k highest, of the causal rule who reaches its cut."""
    options, count = layer.options, len(x_TD)
    if options.scores == "stride":
        every = (math.floor(j / options.capacity) for j in range(count + 1))
        return [place for place in every if place < count]
    if options.scores == "hash":
        scores = [uniform(layer.control.key.item(), token) for token in tokens]
        cut = layer.threshold.value.item()
    elif options.scores == "gaussian" and rule == "topk":
        key, draw = layer.control.key.item(), layer.control.draws.item()
        scores = [uniform(key, 1 + draw, row, place) for place in range(count)]
    elif options.scores == "gaussian":
        scores = [uniform(layer.control.key.item(), place) for place in range(count)]
        cut = 1 - options.capacity
    elif rule == "causal" and options.causal == "predictor":
        scores, cut = [predicted(layer.predictor, x_D).item() for x_D in x_TD], 0.0
    else:
        scores = [(layer.router @ x_D).item() for x_D in x_TD]
        cut = layer.threshold.value.item() if options.causal == "ema_threshold" else 0.0
    if rule == "topk":
        return best(torch.tensor(scores, dtype=torch.float64), math.ceil(options.capacity * count))
    return [t for t, score in enumerate(scores) if score >= cut]


def predicted(predictor: Any, x_D: Tensor) -> Tensor:
    """The logit of a token's being among the top k."""
    x_D = x_D / (x_D.square().mean() + torch.finfo(x_D.dtype).eps).sqrt()
    return (predictor.down @ F.gelu(predictor.up @ x_D)).squeeze()
