"""Reference implementations of the schemes in which tokens skip blocks, from their papers' equations,
and of the decoder around all schemes.

T tokens, K that enter, D width, V vocabulary.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from naive import (
    Rows,
    Told,
    average,
    best,
    block_adds,
    gelu,
    normalised,
    numbers,
    sigmoid,
    softmax,
    unit,
    written,
)
from naive_experts import feed_forward
from torch import Tensor

Tokens = Sequence[list[int]]  # the token ids of each sequence


def plain_block(block: Any, rows: Rows, tokens: Tokens, rule: str) -> Told:
    added = block_adds(block, rows, [list(range(len(x_TD))) for x_TD in rows], rule, feed_forward)
    added.rows = [x_TD + a_TD for x_TD, a_TD in zip(rows, added.rows, strict=True)]
    return added


def entered(block: Any, rows: Rows, chosen: list[list[int]], rule: str) -> Told:
    """The block's update of each sequence's ``chosen`` tokens, which attend to each other only, at their
    own positions; sequences that send none are not there."""
    sent = [(x_TD[torch.tensor(at)], at) for x_TD, at in zip(rows, chosen, strict=True) if at]
    told = block_adds(block, [x for x, _ in sent], [at for _, at in sent], rule, feed_forward)
    added = iter(told.rows)
    told.rows = [next(added) if at else x_TD[:0] for x_TD, at in zip(rows, chosen, strict=True)]
    return told


def cross_entropy(logits: Tensor, truths: Sequence[bool]) -> Tensor:
    """The mean over tokens of -log of the probability that was given to what is true."""
    p = sigmoid(logits)
    given = [q if true else 1 - q for q, true in zip(p, truths, strict=True)]
    return -torch.log(torch.stack(given)).sum() / len(given)


def uniform(*keys: int) -> float:
    """The hash behind random selections, on Python's integers, which can't overflow."""
    bits = 0
    for key in keys:
        bits = (bits + key + 0x9E3779B9) % 2**32
        for _ in range(2):
            bits = (bits ^ bits >> 16) * 0x45D9F3B % 2**32
        bits ^= bits >> 16
    return (bits >> 8) / 2**24


def predicted(predictor: Any, x_TD: Tensor) -> Tensor:
    """The logit of each token's being among the top k; nothing that it sees learns from it."""
    epsilon, x_TD = torch.finfo(x_TD.dtype).eps, x_TD.detach()
    unit_TD = torch.stack([unit(x_D, epsilon) for x_D in x_TD])
    return (gelu(unit_TD @ predictor.up.T) @ predictor.down.T).squeeze(1)


def depth_routed(layer: Any, rows: Rows, tokens: Tokens, rule: str) -> Told:
    """Raposo et al. 2024, equation 1, with every option."""
    o, moved, losses = layer.options, {}, {}
    if o.scores != "learned":
        scores = [_control(layer, ids, row, rule) for row, ids in enumerate(tokens)]
    else:
        r = [(x_TD @ layer.router.weight.T).squeeze(1) for x_TD in rows]
        scores = [r_T.tolist() for r_T in r]
    if o.scores == "learned" and o.causal != "ema_threshold":
        told_by = r if o.causal == "aux_bce" else [predicted(layer.predictor, x) for x in rows]
    if rule == "topk":
        chosen = [sorted(best(s, written(o.capacity, len(s)))) for s in scores]
        if layer.threshold is not None:
            lowest = [min(s[t] for t in at) for s, at in zip(scores, chosen, strict=True)]
            if layer.training:
                moved = average(layer, numbers(sum(lowest) / len(lowest)))
        elif o.scores == "learned":
            truths = [t in at for s, at in zip(scores, chosen, strict=True) for t in range(len(s))]
            error = cross_entropy(torch.cat(told_by), truths)
            losses = {(layer.layer, "causal_rule"): o.auxiliary * error}
        elif o.scores == "gaussian" and layer.training:
            moved = {"router.draws": layer.control.draws + 1}
    else:
        cut = 0.0 if layer.threshold is None else layer.threshold.value.item()
        if o.scores in ("gaussian", "stride"):
            cut = 1 - o.capacity
        elif o.scores == "learned" and o.causal == "predictor":
            scores = [logits.tolist() for logits in told_by]
        chosen = [[t for t, score in enumerate(s) if score >= cut] for s in scores]
    shown = {(layer.layer, "selected"): chosen}
    if not any(chosen):
        return Told(rows, losses, moved, shown)
    told = Told([], losses, moved, shown)
    inner = entered(layer.block, rows, chosen, rule)
    for row, (x_TD, adds_KD, at) in enumerate(zip(rows, inner.rows, chosen, strict=True)):
        out = list(x_TD)
        for adds_D, t in zip(adds_KD, at, strict=True):
            f_D = adds_D + x_TD[t] if o.residual == "full" else adds_D
            gate = 1.0
            if o.scores == "learned":
                gate = r[row][t]
                if o.gate != "linear":
                    gate = sigmoid(gate) * {"sigmoid": 1, "scaled_sigmoid": 2}[o.gate]
            out[t] = gate * f_D + x_TD[t]
        told.rows.append(torch.stack(out))
    return told.taken_in(inner, "block")


def _control(layer: Any, tokens: list[int], row: int, rule: str) -> list[float]:
    """Scores of a control, for one sequence."""
    o, places = layer.options, range(len(tokens))
    if o.scores == "stride":
        at = {math.floor(j / Fraction(str(o.capacity))) for j in range(len(tokens) + 1)}
        return [float(place in at) for place in places]
    key = layer.control.key.item()
    if o.scores == "hash":
        return [uniform(key, token) for token in tokens]
    if rule == "causal":
        return [uniform(key, place) for place in places]
    return [uniform(key, 1 + layer.control.draws.item(), row, place) for place in places]


def skippable(layer: Any, rows: Rows, tokens: Tokens, rule: str) -> Told:
    """D-LLM, equations 7 to 10 and 13, with SkipLayer's budget."""
    o, epsilon = layer.options, torch.finfo(rows[0].dtype).eps
    p = []
    for x_TD in rows:
        unit_TD = torch.stack([unit(x_D, epsilon) for x_D in x_TD])
        p.append(sigmoid(unit_TD @ layer.router.weight[0] + layer.router.bias))
    chosen = [[t for t, p_t in enumerate(p_T.tolist()) if p_t >= 0.5] for p_T in p]
    told = Told([], shown={(layer.layer, "selected"): chosen})
    if rule == "topk":
        soft = torch.cat(p).sum() / sum(map(len, p))
        hard = sum(map(len, chosen)) / sum(map(len, p))
        # The value of the decisions, the gradient of their probabilities.
        loss = o.penalty * (hard + soft - soft.detach() - o.target) ** 2
        told.losses[layer.layer, "budget"] = loss
    if not any(chosen):
        told.rows = rows
        return told
    inner = entered(layer.block, rows, chosen, rule)
    for x_TD, adds_KD, at, p_T in zip(rows, inner.rows, chosen, p, strict=True):
        out = list(x_TD)
        for adds_D, t in zip(adds_KD, at, strict=True):
            gate = p_T[t] if o.gate == "sigmoid" else 1 + p_T[t] - p_T[t].detach()
            out[t] = (1 - gate) * x_TD[t] + gate * (x_TD[t] + adds_D)
        told.rows.append(torch.stack(out))
    return told.taken_in(inner, "block")


def recursions(layer: Any, rows: Rows, tokens: Tokens, rule: str) -> Told:
    by_token = layer.options.depth == "token_choice"
    return (_by_token if by_token else _by_expert)(layer, rows, rule)


def _applied(layer: Any, rows: Rows, chosen: list[list[int]], rule: str) -> Rows:
    """Output of the shared blocks, one after the other, for the chosen tokens alone."""
    stream = list(rows)
    for block in layer.blocks:
        added = entered(block, stream, chosen, rule).rows
        for row, (adds_KD, at) in enumerate(zip(added, chosen, strict=True)):
            changed = list(stream[row])
            for adds_D, t in zip(adds_KD, at, strict=True):
                changed[t] = changed[t] + adds_D
            stream[row] = torch.stack(changed)
    return stream


def _by_expert(layer: Any, rows: Rows, rule: str) -> Told:
    """Bae et al. 2025, equation 2.1 with hierarchical filtering: a token that is left out is done."""
    o, told = layer.options, Told([])
    active = [list(range(len(x_TD))) for x_TD in rows]
    for r in range(o.recursions):
        logits = [x_TD @ layer.router[r] for x_TD in rows]
        chosen = active
        if r and rule == "causal":
            chosen = [
                [t for t in at if sigmoid(l_T[t]) >= 0.5] for l_T, at in zip(logits, active, strict=True)
            ]
        elif r:
            chosen = []
            for l_T, at in zip(logits, active, strict=True):
                k = math.ceil(len(l_T) * (o.recursions - r) / o.recursions)
                chosen.append(sorted(at[i] for i in best([l_T[t].item() for t in at], k)))
            asked = torch.cat([l_T[torch.tensor(at)] for l_T, at in zip(logits, active, strict=True)])
            truths = [t in some for at, some in zip(active, chosen, strict=True) for t in at]
            number = 1 + r * len(layer.blocks)
            told.losses[number, "causal_rule"] = o.auxiliary * cross_entropy(asked, truths)
        if any(chosen):
            given, after = _applied(layer, rows, chosen, rule), []
            for x_TD, y_TD, l_T, at in zip(rows, given, logits, chosen, strict=True):
                out = list(x_TD)
                for t in at:
                    f_D = y_TD[t] if o.residual == "full" else y_TD[t] - x_TD[t]
                    out[t] = x_TD[t] + o.gate_scale * sigmoid(l_T[t]) * f_D
                after.append(torch.stack(out))
            rows = after
        _show(layer, told, r, chosen)
        active = chosen
    told.rows = rows
    return told


def _by_token(layer: Any, rows: Rows, rule: str) -> Told:
    """A token takes as many recursions as its router's largest output says, with the gate where it
    leaves."""
    o, told = layer.options, Told([])
    gates = [softmax(x_TD @ layer.router.T) for x_TD in rows]
    depths = [[best(g, 1)[0] for g in g_TN.tolist()] for g_TN in gates]
    stream = rows
    for r in range(o.recursions):
        chosen = [[t for t, depth in enumerate(some) if depth >= r] for some in depths]
        if any(chosen):
            stream = _applied(layer, stream, chosen, rule)
        _show(layer, told, r, chosen)
    for x_TD, y_TD, g_TN, some in zip(rows, stream, gates, depths, strict=True):
        out = []
        for t, depth in enumerate(some):
            f_D = y_TD[t] if o.residual == "full" else y_TD[t] - x_TD[t]
            out.append(x_TD[t] + o.gate_scale * g_TN[t, depth] * f_D)
        told.rows.append(torch.stack(out))
    if rule == "topk" and o.balance:
        gates_TN, everything = torch.cat(gates), [i for some in depths for i in some]
        f = numbers([everything.count(i) / len(everything) for i in range(o.recursions)])
        f = f.float().tolist()  # as `modbench.routing.balance`
        balance = o.recursions * sum(f_i * p for f_i, p in zip(f, gates_TN.mean(0), strict=True))
        told.losses[1, "balance"] = o.balance * balance
    return told


def _show(layer: Any, told: Told, r: int, chosen: list[list[int]]) -> None:
    for number in range(1 + r * len(layer.blocks), 1 + (r + 1) * len(layer.blocks)):
        if r:  # the first takes everyone
            told.shown[number, "selected"] = chosen


def passed(layer: Any, rows: Rows, tokens: Tokens, rule: str) -> Told:
    return Told(rows)


LOOPS = {
    "Block": plain_block,
    "DepthRouted": depth_routed,
    "Recursions": recursions,
    "Passed": passed,
}


def layer(layer: Any, rows: Rows, tokens: Tokens, rule: str) -> Told:
    name = type(layer).__name__
    loop = skippable if name == "DepthRouted" and layer.decides else LOOPS[name]
    return loop(layer, rows, tokens, rule)


def decoder(model: Any, tokens: Tokens, rule: str) -> Told:
    """Embedding, layers, norm, head: each sequence's logits (T, V)."""
    embedding = model.embedding.weight.unbind()
    told = Told([torch.stack([embedding[token] for token in ids]) for ids in tokens])
    for number, part in enumerate(model.layers):
        inner = layer(part, told.rows, tokens, rule)
        told.rows = inner.rows
        told.taken_in(inner, f"layers.{number}")
    head = model.embedding.weight if model.head is None else model.head.weight
    told.rows = [normalised(model.norm, model.config, x_TD) @ head.T for x_TD in told.rows]
    return told
