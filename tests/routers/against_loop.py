"""A scheme against its reference loop: outputs, auxiliary losses, what is shown, what the pass moves,
and the gradients of the input and of every parameter, in float64.

B sequences, T tokens, D width, N tokens of all sequences.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import naive_depth
import naive_experts
import torch
from naive import Rows, Told
from torch import Tensor, nn

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.mlp import FeedForward
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def model_of(router: str, options: dict, shape: ModelConfig, seen: int = 0) -> Decoder:
    """In float64 and training; matrices far from ties, gates of some size, norms that differ from 1, and
    averages over ``seen`` passes."""
    model = build_model(shape, build_router(router, options), seed=5).double().train()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.3)
        if "norm" in name:
            parameter.data += 1
    for name, buffer in model.named_buffers():
        if name.endswith("bias.value"):
            nn.init.normal_(buffer, std=0.2)
        if name.endswith("updates"):
            buffer.fill_(seen)
    return model


def routed_part(model: Decoder) -> nn.Module:
    """Of the second layer what the scheme changes: all of it, or its feed-forward part."""
    layer = model.layers[1]
    part = getattr(layer, "feed_forward", None)
    return layer if part is None or type(part).__name__ == "MLP" else part


def equals_its_loop(
    part: nn.Module,
    lengths: Sequence[int],
    rule: str,
    *,
    x_BTD: Tensor | None = None,
    alive: bool = True,
    loop: Callable[[Any, Rows, str], Told] | None = None,
) -> Told:
    """``alive``: every parameter that the rule uses has a gradient to compare, not zeros."""
    twin, shape = copy.deepcopy(part), _shape(part)
    if x_BTD is None:
        x_BTD = torch.randn(len(lengths), max(lengths), shape.width, dtype=torch.float64)
    tokens_BT = torch.randint(shape.vocabulary, x_BTD.shape[:2])
    fast_BTD, slow_BTD = x_BTD.clone().requires_grad_(), x_BTD.clone().requires_grad_()
    context = Context(selection=rule, tokens_BT=tokens_BT, lengths_B=_ragged(lengths))
    out_BTD = part(fast_BTD, context)
    rows = [slow_BTD[b, :length] for b, length in enumerate(lengths)]
    if not isinstance(part, FeedForward):
        told = naive_depth.layer(twin, rows, _ids(tokens_BT, lengths), rule)
    else:
        told = (loop or naive_experts.feed_forward)(twin, rows, rule)
        if rule == "causal":  # papers' losses are for training
            told.losses.clear()
    _compare(part, twin, out_BTD, told, context, lengths, alive and rule)
    torch.testing.assert_close(fast_BTD.grad, slow_BTD.grad, **CLOSE, msg=_of("input"))
    return told


def model_equals_its_loop(model: Decoder, lengths: Sequence[int], rule: str) -> Told:
    """The whole decoder, from tokens to logits."""
    twin = copy.deepcopy(model)
    tokens_BT = _distinct(model.config.vocabulary, len(lengths), max(lengths))
    context = Context(selection=rule, lengths_B=_ragged(lengths))
    out_BTV = model(tokens_BT, context)
    told = naive_depth.decoder(twin, _ids(tokens_BT, lengths), rule)
    _compare(model, twin, out_BTV, told, context, lengths, rule)
    return told


def _shape(part: nn.Module) -> ModelConfig:
    shapes = (getattr(module, "model", None) for module in part.modules())
    return next(shape for shape in shapes if isinstance(shape, ModelConfig))


def _of(name: str) -> Callable[[str], str]:
    return lambda difference: f"{name}: {difference}"


def _distinct(vocabulary: int, sequences: int, tokens: int) -> Tensor:
    """Token ids, none of them twice where there are enough: equal embeddings would tie to within what
    rounding makes of them."""
    if vocabulary < sequences * tokens:
        return torch.randint(vocabulary, (sequences, tokens))
    return torch.randperm(vocabulary)[: sequences * tokens].view(sequences, tokens)


def _ragged(lengths: Sequence[int]) -> Tensor | None:
    return torch.tensor(lengths) if min(lengths) < max(lengths) else None


def _ids(tokens_BT: Tensor, lengths: Sequence[int]) -> list[list[int]]:
    return [tokens_BT[b, :length].tolist() for b, length in enumerate(lengths)]


def _compare(
    part: nn.Module,
    twin: nn.Module,
    out_BTD: Tensor,
    told: Told,
    context: Context,
    lengths: Sequence[int],
    alive: str | bool,
) -> None:
    for row, (length, slow_TD) in enumerate(zip(lengths, told.rows, strict=True)):
        torch.testing.assert_close(out_BTD[row, :length], slow_TD, **CLOSE)
    for key, wanted in told.shown.items():
        _shows(context, key, wanted)
    buffers = dict(part.named_buffers())
    assert told.moved.keys() <= buffers.keys()
    for name in part.state_dict().keys() & buffers.keys():
        # Averages are stepped in float32.
        before = twin.get_buffer(name)
        wanted = told.moved.get(name, before)
        torch.testing.assert_close(buffers[name], wanted.to(before), rtol=1e-6, atol=0, msg=_of(name))

    weights = [torch.randn_like(slow_TD) for slow_TD in told.rows]
    fast = sum((out_BTD[b, : len(w)] * w).sum() for b, w in enumerate(weights))
    slow = sum((row * w).sum() for row, w in zip(told.rows, weights, strict=True))
    assert context.trace.losses.keys() == told.losses.keys()
    for key, loss in told.losses.items():
        torch.testing.assert_close(context.trace.losses[key], loss, **CLOSE, msg=_of(str(key)))
        size = abs(loss.item())
        weight = 10 / size if size > 1e-12 else 1.0  # so that the gradients show it
        fast, slow = fast + weight * context.trace.losses[key], slow + weight * loss
    fast.backward()
    slow.backward()
    for (name, ours), theirs in zip(part.named_parameters(), twin.parameters(), strict=True):
        zeros = torch.zeros_like(ours)
        one, other = (zeros if p.grad is None else p.grad for p in (ours, theirs))
        torch.testing.assert_close(one, other, **CLOSE, msg=_of(name))
        idle = alive == "causal" and "predictor" in name
        assert not alive or idle or other.any(), name


def _shows(context: Context, key: tuple[int, str], wanted: list) -> None:
    """Loads as numbers of tokens; the selected by their places in each sequence, and counted."""
    shown = context.trace.tensors[key]
    if key[1] != "selected":
        assert shown.tolist() == wanted, key
        return
    assert [row.nonzero().flatten().tolist() for row in shown] == wanted
    assert context.trace.counts[key[0], "depth"] == tuple(map(len, wanted))
