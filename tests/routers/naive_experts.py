"""Reference implementations of the schemes of experts, from their papers' equations: every expert
processes every token, with a gate of 0 where it was not chosen; loops over numbers choose.

T tokens, N tokens of all sequences, D width, E experts.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from naive import Rows, Told, average, best, dense, mlp, numbers, sigmoid, softmax, written
from torch import Tensor


def gated(bank: Any, rows: Rows, gates: list[Tensor]) -> Rows:
    """y_t = sum_i g_ti E_i(x_t), with each sequence's gates (T, E)."""
    x_ND, out_ND = torch.cat(rows), torch.zeros_like(torch.cat(rows))
    experts = zip(bank.up.unbind(), bank.down.unbind(), torch.cat(gates).unbind(1), strict=True)
    for up, down, gate_N in experts:
        out_ND = out_ND + gate_N[:, None] * mlp(bank.model.mlp, up, down, x_ND)
    return list(out_ND.split([len(x_TD) for x_TD in rows]))


def mask(chosen: Sequence[Sequence[int]], experts: int) -> Tensor:
    """1 where a token's expert is among its chosen, (T, E)."""
    return numbers([[float(e in some) for e in range(experts)] for some in chosen])


def chosen_of(scores: list[float], options: Any) -> list[int]:
    """The k highest; of the best groups alone, by the sum of their best k / top_groups (DeepSeek-V3,
    section 2.1.2)."""
    size = len(scores) // options.groups
    members = min(size, math.ceil(options.top_k / options.top_groups))
    sums = [sum(sorted(scores[g * size : (g + 1) * size])[-members:]) for g in range(options.groups)]
    groups = best(sums, options.top_groups)
    allowed = [i for i in range(len(scores)) if i // size in groups or options.groups == 1]
    return [allowed[i] for i in best([scores[i] for i in allowed], options.top_k)]


def tokens_choose(part: Any, rows: Rows, rule: str) -> Told:
    """Shazeer et al. 2017, equation 1, with every option: each token goes to the experts it scores
    highest. Experts beyond the bank's do nothing."""
    o, experts, real = part.options, len(part.router.weight), part.options.experts
    tokens = sum(map(len, rows))
    room = math.inf
    if o.capacity_factor is not None and rule == "topk":
        room = written(o.capacity_factor, tokens * o.top_k, among=experts)
    bias_E = torch.zeros(experts) if part.router.bias is None else part.router.bias.value
    workload, taken, told, z = [0] * experts, [0] * experts, Told([]), []
    gates, shares, assigned = [], [], []  # of each sequence
    for x_TD in rows:
        logits_TE = x_TD @ part.router.weight.T
        scores_TE = softmax(logits_TE) if o.affinity == "softmax" else sigmoid(logits_TE)
        chosen = [chosen_of(scores, o) for scores in (scores_TE.detach() + bias_E).tolist()]
        admitted: list[list[int]] = []
        for some in chosen:
            admitted.append([e for e in some if e < real and taken[e] < room])
            for e in some:
                workload[e] += 1
                taken[e] += e >= real or taken[e] < room
        gates_TE = scores_TE * mask(chosen, experts)
        if o.renormalise:
            gates_TE = gates_TE / gates_TE.sum(1, keepdim=True)
        gates.append(o.scaling * (gates_TE * mask(admitted, experts))[:, :real])
        shares.append(scores_TE / scores_TE.sum(1, keepdim=True))
        assigned.append([best(scores, o.top_k) for scores in scores_TE.tolist()])
        z += list(torch.log(torch.exp(logits_TE).sum(1)) ** 2)
    told.rows = gated(part.bank, rows, gates)
    if part.shared is not None:
        shared = dense(part.shared, rows, rule).rows
        if part.shared_gate is not None:
            weights = [sigmoid(x_TD @ part.shared_gate.weight.T) for x_TD in rows]
            shared = [w_T1 * y_TD for w_T1, y_TD in zip(weights, shared, strict=True)]
        told.rows = [y_TD + s_TD for y_TD, s_TD in zip(told.rows, shared, strict=True)]
    told.shown = {(part.layer, "load"): taken}
    if math.isfinite(room):
        dropped = [a - b for a, b in zip(workload, taken, strict=True)]
        told.shown[part.layer, "dropped"] = dropped
    if o.balance and rule == "topk":
        losses = [balance(s_TE, some) for s_TE, some in zip(shares, assigned, strict=True)]
        if o.balance_scope == "batch":
            losses = [balance(torch.cat(shares), [some for each in assigned for some in each])]
        told.losses[part.layer, "balance"] = o.balance * sum(losses) / len(losses)
    if o.z_loss and rule == "topk":
        told.losses[part.layer, "z_loss"] = o.z_loss * sum(z) / tokens
    if part.router.bias is not None and part.training and rule == "topk":
        mean = sum(workload) / experts
        steps = [o.bias_step * ((n < mean) - (n > mean)) for n in workload]
        told.moved["router.bias.value"] = bias_E + numbers(steps)
    return told


def balance(shares_NE: Tensor, assigned: list[list[int]]) -> Tensor:
    """E * sum_i f_i P_i: f the share of assignments, float32 in every model, P the mean share of
    scores."""
    experts = shares_NE.shape[1]
    everything = [e for some in assigned for e in some]
    f = numbers([everything.count(e) / len(everything) for e in range(experts)]).float().tolist()
    return experts * sum(f[e] * shares_NE[:, e].sum() / len(shares_NE) for e in range(experts))


def experts_choose(part: Any, rows: Rows, rule: str) -> Told:
    """Zhou et al. 2022, equations 1 and 2, on each pool; under the causal rule each expert takes what
    scores no less than its threshold."""
    o, told = part.options, Told([])
    pools, gates, lowest, workload = rows, [], [], [0] * o.experts
    if o.pool == "batch":
        pools = [torch.cat(rows)]
    for x_TD in pools:
        scores_TE = softmax(x_TD @ part.router.weight.T)
        columns = scores_TE.T.tolist()
        if rule == "topk":
            k = written(o.capacity, len(x_TD), among=o.experts)
            taken = [set(best(column, k)) for column in columns]
            lowest.append(numbers([min(c[t] for t in taken[e]) for e, c in enumerate(columns)]))
        else:
            cuts = part.router.threshold.value.tolist()
            taken = [
                {t for t, s in enumerate(c) if s >= cut} for c, cut in zip(columns, cuts, strict=True)
            ]
        chosen = [[e for e in range(o.experts) if t in taken[e]] for t in range(len(x_TD))]
        workload = [n + len(some) for n, some in zip(workload, taken, strict=True)]
        gates.append(scores_TE * mask(chosen, o.experts))
    told.rows = gated(part.bank, rows, gates)
    if part.training and rule == "topk":
        told.moved = moved_average(part, torch.stack(lowest).mean(0))
    told.shown[part.layer, "load"] = workload
    return told


def experts_above(part: Any, rows: Rows, rule: str) -> Told:
    """Sun et al. 2026, section 3: y_t = sum of g(r_ti) E_i(x_t) over the experts with r_ti >= c_i; c_i
    then goes to the k-th highest of the batch's r_ti."""
    o, told, cuts = part.options, Told([]), part.router.threshold.value.tolist()
    gates, logits, workload = [], [], [0] * o.experts
    for x_TD in rows:
        logits_TE = x_TD @ part.router.weight.T
        chosen = [[e for e, r in enumerate(r_E) if r >= cuts[e]] for r_E in logits_TE.tolist()]
        gates_TE = sigmoid(logits_TE) if o.gate == "sigmoid" else softmax(logits_TE)
        gates.append(gates_TE * mask(chosen, o.experts))
        logits += logits_TE.tolist()
        workload = [n + sum(e in some for some in chosen) for e, n in enumerate(workload)]
    told.rows = gated(part.bank, rows, gates)
    if part.training and rule == "topk":
        k = written(o.capacity, len(logits), among=o.experts)
        kth = [sorted((r_E[e] for r_E in logits), reverse=True)[k - 1] for e in range(o.experts)]
        told.moved = moved_average(part, numbers(kth))
    told.shown[part.layer, "load"] = workload
    return told


def relu_gates(part: Any, rows: Rows, rule: str) -> Told:
    """ReMoE: equation 5; the loss of 10 with the weights of 11, this layer's part of the sum over all;
    lambda after the pass, by 7 and 8."""
    o, told, gates = part.options, Told([]), []
    for x_TD in rows:
        logits_TE = x_TD @ part.router.weight.T
        gates.append(torch.where(logits_TE > 0, logits_TE, 0.0))
    told.rows, gates_NE = gated(part.bank, rows, gates), torch.cat(gates)
    tokens, workload = len(gates_NE), [sum(g > 0 for g in gate_N) for gate_N in gates_NE.T.tolist()]
    told.shown[part.layer, "load"] = workload
    if rule == "topk":
        loss = 0
        for e in range(o.experts):
            f_e = o.experts / (o.active_experts * tokens) * workload[e]
            loss = loss + f_e * gates_NE[:, e].sum() / (part.model.layers * tokens)
        coefficient = numbers(o.start_coefficient * o.multiplier ** part.router.exponent.item())
        told.losses[part.layer, "sparsity"] = coefficient.float() * loss  # float32 in every model
    if part.training and rule == "topk":
        sparsity, target = 1 - sum(workload) / (o.experts * tokens), 1 - o.active_experts / o.experts
        far = abs(sparsity - target) > 1e-12
        told.moved["router.exponent"] = part.router.exponent + far * (1 if sparsity < target else -1)
    return told


def moved_average(part: Any, seen: Tensor) -> dict[str, Tensor]:
    """The exponential average behind the thresholds of a part's scorer."""
    scorer = SimpleNamespace(threshold=part.router.threshold, options=part.options)
    return {f"router.{name}": value for name, value in average(scorer, seen).items()}


LOOPS = {
    "MLP": dense,
    "TokenChoice": tokens_choose,
    "IntegratedMoDE": tokens_choose,
    "ExpertChoice": experts_choose,
    "ExpertThreshold": experts_above,
    "ReluRouting": relu_gates,
}


def feed_forward(part: Any, rows: Rows, rule: str) -> Told:
    return LOOPS[type(getattr(part, "options", part)).__name__](part, rows, rule)
