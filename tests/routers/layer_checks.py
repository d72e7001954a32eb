"""Checks of every scheme, whatever it selects: its FLOPs are as stated in every phase, it decodes what
it scores, runs again as it ran, and stands in every dtype.

B sequences, T tokens, D width, P width of a head, V vocabulary.
"""

import copy
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.counting.counter import FlopCounter
from modbench.ledger import CONVENTIONS, Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.registry import build_router


def full_except(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Parameters of a test: all ``values``, those that are not ``kept`` marked as `full`."""
    return [one if one in kept else pytest.param(one, marks=pytest.mark.full) for one in values]


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A router, its options and the shape it is tried on."""

    router: str
    options: Mapping[str, Any]
    shape: ModelConfig

    def built(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
        return build_model(self.shape, build_router(self.router, self.options)).to(device, dtype)

    def tokens(self, sequences: int, tokens: int) -> Tensor:
        return torch.randint(self.shape.vocabulary, (sequences, tokens))

    def warmed(self, dtype: torch.dtype = torch.float32) -> Decoder:
        """Train briefly, so that the rules select some tokens and skip others."""
        model = self.built().train()
        for _ in range(3):
            model(self.tokens(2, 64), Context())
        return model.eval().to(dtype)


def train(model: Decoder, tokens_BT: Tensor, **options: Any) -> tuple[Context, FlopCounter]:
    context = Context(**options)
    with FlopCounter() as counter:
        logits_BTV = model.train()(tokens_BT, context)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT.flatten())
        (loss + context.trace.auxiliary_loss()).backward()
    return context, counter


def entries(ledger: Ledger) -> dict:
    return {key: flops for key, flops in ledger if flops.executed}


def same(ledger: Ledger, counter: FlopCounter) -> None:
    assert entries(ledger) == entries(counter.ledger)
    for convention in CONVENTIONS:
        assert ledger.total(convention) == counter.under(convention)
    assert counter.executed == ledger.total("executed") > 0


def lengths_of(lengths: Sequence[int]) -> Tensor | None:
    return torch.tensor(lengths) if min(lengths) < max(lengths) else None


def costs_what_it_selects(scheme: Scheme, dtype: torch.dtype = torch.float32) -> None:
    """On values: forward and training, full and padded; prompts, more at once, one token each."""
    model = scheme.warmed(dtype)
    costs_what_it_decodes(model, scheme)
    for lengths in ((33, 33), (17, 33)):
        tokens_BT = scheme.tokens(2, 33)
        for rule in ("topk", "causal"):
            context = Context(selection=rule, lengths_B=lengths_of(lengths))
            with FlopCounter() as counter, torch.no_grad():
                model.eval()(tokens_BT, context)
            counts = context.trace.counts
            same(model.ledger(Workload(lengths=lengths, padding=True, counts=counts)), counter)
        context, counter = train(copy.deepcopy(model), tokens_BT, lengths_B=lengths_of(lengths))
        workload = Workload(lengths=lengths, phase="train", padding=True, counts=context.trace.counts)
        same(model.ledger(workload), counter)


def costs_what_it_decodes(model: Decoder, scheme: Scheme) -> None:
    """Prompts of three lengths, then more of each at once, then one token each."""
    model.eval()
    cache, past = Cache(3), (0, 0, 0)
    tokens_BT = scheme.tokens(3, 31)
    phases = (([31, 1, 17], "prefill"), ([4, 9, 2], "prefill"), ([1, 1, 1], "decode"))
    for new, phase in phases:
        context = Context(selection="causal", cache=cache, lengths_B=lengths_of(new), logits="last")
        with FlopCounter() as counter, torch.no_grad():
            model(tokens_BT[:, : max(new)], context)
        counts = context.trace.counts
        workload = Workload(lengths=tuple(new), past=past, phase=phase, padding=True, counts=counts)
        same(model.ledger(workload), counter)
        past = tuple(cache.read)


def costs_its_nominal_flops(scheme: Scheme, dtype: torch.dtype = torch.float32) -> None:
    """On shapes alone, the selection is unknown: nominal counts, in every phase."""
    model = scheme.built("meta", dtype)
    tokens_BT = torch.zeros(3, 63, dtype=torch.long, device="meta")
    for rule in ("topk", "causal"):
        with FlopCounter() as counter, torch.no_grad():
            model(tokens_BT, Context(selection=rule))
        same(model.ledger(Workload.uniform(3, 63)), counter)
    _, counter = train(model, tokens_BT)
    same(model.ledger(Workload.uniform(3, 63, "train")), counter)
    _, counter = train(model, tokens_BT, checkpoint=True)
    same(model.ledger(Workload.uniform(3, 63, "train", checkpoint=True)), counter)
    cache = Cache(3)
    with torch.no_grad():
        with FlopCounter() as counter:
            model(tokens_BT, Context(selection="causal", cache=cache, logits="last"))
        same(model.ledger(Workload.uniform(3, 63, "prefill")), counter)
        steps = Ledger()
        for place in range(9):
            with FlopCounter() as counter:
                model(tokens_BT[:, :1], Context(selection="causal", cache=cache))
            same(model.ledger(Workload.uniform(3, 1, "decode", past=63 + place)), counter)
            steps += counter.ledger
    assert entries(steps) == entries(model.ledger(Workload.uniform(3, 9, "decode", past=63)))


FROZEN: dict[str, Callable[[str], bool]] = {
    "embedding": lambda name: name.startswith("embedding"),
    "embedding-and-first-layer": lambda name: name.startswith(("embedding", "layers.0.")),
    "the-same-and-norms": lambda name: name.startswith(("embedding", "layers.0.")) or "norm" in name,
    "all-but-what-writes": lambda name: not name.endswith(("down.weight", "bank.down", "out.weight")),
    "all-but-the-norms": lambda name: "norm" not in name,
    "all-but-the-last-norms": lambda name: "feed_forward_norm" not in name,
    "all-but-the-first-norm-and-routers": lambda name: (
        not name.endswith(("router", "router.weight", "layers.0.attention_norm.weight"))
    ),
    "all-but-routers": lambda name: not name.endswith(("router", "router.weight")),
    "routers": lambda name: name.endswith(("router", "router.weight")),
    "predictors": lambda name: "predictor" in name,
    "all-but-predictors": lambda name: "predictor" not in name,
    "attention": lambda name: ".attention." in name,
    "experts-up": lambda name: name.endswith(("bank.up", "up.weight")),
    "all-but-the-head": lambda name: not name.startswith(("head", "embedding")),
}


def frozen_parts_cost_no_gradient(scheme: Scheme) -> None:
    tokens_BT = scheme.tokens(2, 31)
    for frozen in FROZEN.values():
        model = scheme.built()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen(name))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            continue  # a scheme without routers
        context, counter = train(model, tokens_BT)
        same(model.ledger(Workload.uniform(2, 31, "train", counts=context.trace.counts)), counter)


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def decodes_what_it_scores(scheme: Scheme) -> Decoder:
    """A prompt and then token by token; ragged prompts, some more at once, then one each."""
    model = scheme.warmed()
    tokens_BT = scheme.tokens(3, 60)
    whole_BTV = model(tokens_BT, Context(selection="causal"))
    cache = Cache(3)
    parts = [model(tokens_BT[:, :37], Context(selection="causal", cache=cache))]
    for place in range(37, 60):
        token_B1 = tokens_BT[:, place : place + 1]
        parts.append(model(token_B1, Context(selection="causal", cache=cache)))
    assert close(torch.cat(parts, dim=1), whole_BTV)

    lengths, more, cache = [31, 1, 17], [5, 9, 2], Cache(3)
    context = Context(selection="causal", cache=cache, lengths_B=torch.tensor(lengths), logits="last")
    last_B1V = model(tokens_BT[:, :31], context)
    chunk_BT = torch.stack([tokens_BT[b, n : n + 9] for b, n in enumerate(lengths)])
    chunk_BTV = model(chunk_BT, Context(selection="causal", cache=cache, lengths_B=torch.tensor(more)))
    read = [n + m for n, m in zip(lengths, more, strict=True)]
    step_B1 = torch.stack([tokens_BT[b, n : n + 1] for b, n in enumerate(read)])
    step_B1V = model(step_B1, Context(selection="causal", cache=cache))
    for b in range(3):
        alone_TV = model(tokens_BT[b : b + 1, : read[b] + 1], Context(selection="causal"))[0]
        assert close(last_B1V[b, 0], alone_TV[lengths[b] - 1])
        assert close(chunk_BTV[b, : more[b]], alone_TV[lengths[b] : read[b]])
        assert close(step_B1V[b, 0], alone_TV[read[b]])
    return model


def runs_again_as_it_ran(scheme: Scheme) -> None:
    """Under checkpointing: the same gradients, nothing moves twice, every layer executed once more."""
    models = [scheme.warmed() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    tokens_BT = scheme.tokens(2, 33)
    (_, _), (context, counter) = (
        train(model, tokens_BT, checkpoint=checkpoint)
        for model, checkpoint in zip(models, (False, True), strict=True)
    )
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        assert torch.equal(one, other), name
    workload = Workload(lengths=(33, 33), phase="train", checkpoint=True, counts=context.trace.counts)
    same(models[1].ledger(workload), counter)


def stands_in_every_dtype(scheme: Scheme) -> None:
    """As a bfloat16 module and under autocast: gradients are numbers, and most logits near float32's (a
    score near a threshold may tip)."""
    model, tokens_BT = scheme.warmed(), scheme.tokens(2, 33)
    half, mixed = copy.deepcopy(model).bfloat16(), copy.deepcopy(model)
    with torch.no_grad():
        whole_BTV, half_BTV = model(tokens_BT, Context()), half(tokens_BT, Context())
    with torch.autocast("cpu", torch.bfloat16):
        mixed_BTV = mixed(tokens_BT, Context())
        context = Context()
        loss = mixed.train()(tokens_BT, context).float().square().mean()
    (loss + context.trace.auxiliary_loss()).backward()
    train(half, tokens_BT)
    assert half_BTV.dtype == torch.bfloat16
    for other_BTV in (half_BTV, mixed_BTV):
        difference_BT = (other_BTV.float() - whole_BTV).abs().amax(-1)
        assert difference_BT.median() < 0.1 * whole_BTV.abs().max()
    for module in (half, mixed):
        for name, parameter in module.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


def saves_and_loads(scheme: Scheme) -> None:
    """A state that was written and read goes on as the one that it was taken from."""
    model, other = scheme.warmed().train(), scheme.built().train()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    tokens_BT = scheme.tokens(2, 33)
    for _ in range(2):  # the second pass sees what the first one moved
        assert torch.equal(model(tokens_BT, Context()), other(tokens_BT, Context()))
    for (name, one), two in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two), name
