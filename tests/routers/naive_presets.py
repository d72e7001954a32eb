"""Token choice's presets, each as its paper has it, by equation number, in loops over tokens.

T tokens, D width, E experts.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from naive import Rows, Told, best, mlp, numbers, sigmoid, softmax
from torch import Tensor


def expert(part: Any) -> Callable[[int, Tensor], Tensor]:
    """E_i(x). The matrices one by one, so that a gradient need not write whole banks."""
    ups, downs, kind = part.bank.up.unbind(), part.bank.down.unbind(), part.model.mlp
    return lambda i, x_D: mlp(kind, ups[i], downs[i], x_D[None])[0]


def ratio(n: int, of: int) -> float:
    """A share of a load: float32 in every model."""
    return numbers(n / of).float().item()


def switch(part: Any, rows: Rows, rule: str) -> Told:
    """Fedus et al. 2021, equations 1 to 6; under the causal rule with no capacity to speak of."""
    e_i, experts, tokens = expert(part), len(part.router.weight), sum(map(len, rows))
    capacity = math.ceil(tokens / experts * 1.25) if rule == "topk" else tokens
    sent, p_sum, out = [0] * experts, 0, []
    for x_TD in rows:
        out.append([])
        for x_D in x_TD:
            p_E = softmax(part.router.weight @ x_D)
            (i,) = best(p_E.tolist(), 1)
            room = sent[i] < capacity
            out[-1].append(p_E[i] * e_i(i, x_D) if room else torch.zeros_like(x_D))
            sent[i], p_sum = sent[i] + 1, p_sum + p_E
    loss = 0.01 * experts * sum(ratio(sent[i], tokens) * p_sum[i] / tokens for i in range(experts))
    shown = {(part.layer, "load"): [min(n, capacity) for n in sent]}
    return Told([torch.stack(y) for y in out], {(part.layer, "balance"): loss}, shown=shown)


def mixtral(part: Any, rows: Rows, rule: str) -> Told:
    """Jiang et al. 2024, section 2.1: Softmax(Top2(x W))_i SwiGLU_i(x), summed."""
    e_i, experts = expert(part), len(part.router.weight)
    out, sent, p_sum, tokens = [], [0] * experts, 0, sum(map(len, rows))
    for x_TD in rows:
        out.append([])
        for x_D in x_TD:
            logits_E = part.router.weight @ x_D
            chosen = best(logits_E.tolist(), 2)
            gates = softmax(logits_E[chosen])
            out[-1].append(sum(g * e_i(i, x_D) for g, i in zip(gates, chosen, strict=True)))
            p_sum = p_sum + softmax(logits_E)
            for i in chosen:
                sent[i] += 1
    loss = (
        0.01 * experts * sum(ratio(n, 2 * tokens) * p / tokens for n, p in zip(sent, p_sum, strict=True))
    )
    shown = {(part.layer, "load"): sent}
    return Told([torch.stack(y) for y in out], {(part.layer, "balance"): loss}, shown=shown)


def olmoe(part: Any, rows: Rows, rule: str) -> Told:
    """Muennighoff et al. 2024, equations 1 to 3, and Zoph et al. 2022, equation 5; the balance loss at
    an eighth, so that it is 1 at an even load."""
    e_i, tokens = expert(part), sum(map(len, rows))
    out, sent, p_sum, z_sum = [], [0] * 64, 0, 0
    for x_TD in rows:
        out.append([])
        for x_D in x_TD:
            logits_E = part.router.weight @ x_D
            p_E = softmax(logits_E)
            chosen = best(p_E.tolist(), 8)
            out[-1].append(sum(p_E[i] * e_i(i, x_D) for i in chosen))
            p_sum, z_sum = p_sum + p_E, z_sum + torch.log(torch.exp(logits_E).sum()) ** 2
            for i in chosen:
                sent[i] += 1
    balance = 64 * sum(ratio(sent[i], tokens) * p_sum[i] / tokens for i in range(64)) / 8
    losses = {(part.layer, "balance"): 0.01 * balance, (part.layer, "z_loss"): 0.001 * z_sum / tokens}
    return Told([torch.stack(y) for y in out], losses, shown={(part.layer, "load"): sent})


def deepseek_v3(part: Any, rows: Rows, rule: str) -> Told:
    """DeepSeek-V3, equations 12 to 20: 8 of 256 experts, of 4 of 8 groups by their best two; after a
    step of training the bias of an overloaded expert falls, that of an underloaded one rises."""
    e_i, b, out, losses, sent = expert(part), part.router.bias.value, [], [], [0] * 256
    for u_TD in rows:
        f, p_E, y = [0] * 256, 0, []
        (shared_TD,) = [mlp("swiglu", part.shared.up.weight, part.shared.down.weight, u_TD)]
        for u_D, shared_D in zip(u_TD, shared_TD, strict=True):
            s_E = sigmoid(part.router.weight @ u_D)
            biased = (s_E + b).tolist()
            sums = [sum(sorted(biased[g * 32 : g * 32 + 32])[-2:]) for g in range(8)]
            groups = best(sums, 4)
            allowed = [i for i in range(256) if i // 32 in groups]
            chosen = sorted(allowed, key=lambda i: (-biased[i], i))[:8]
            routed_D = sum(s_E[i] * e_i(i, u_D) for i in chosen) / s_E[chosen].sum() * 2.5
            y.append(routed_D + shared_D)
            for i in chosen:
                sent[i] += 1
            for i in best(s_E.tolist(), 8):
                f[i] += 1
            p_E = p_E + s_E / s_E.sum() / len(u_TD)
        out.append(torch.stack(y))
        f_E = 256 * numbers([ratio(n, 8 * len(u_TD)) for n in f])
        losses.append(0.0001 * (f_E * p_E).sum())
    told = Told(out, {(part.layer, "balance"): sum(losses) / len(losses)})
    told.shown[part.layer, "load"] = sent
    if part.training and rule == "topk":
        steps = [0.001 * ((n < sum(sent) / 256) - (n > sum(sent) / 256)) for n in sent]
        told.moved["router.bias.value"] = b + numbers(steps)
    return told


PRESETS: dict[str, Callable[[Any, Rows, str], Told]] = {
    "switch": switch,
    "mixtral": mixtral,
    "olmoe": olmoe,
    "deepseek_v3": deepseek_v3,
}
