"""Counts what each phase of a causal language model runs, by layer and component.

B sequences, T tokens.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.accounting import hugging_face
from modbench.accounting.families import load_config
from modbench.accounting.uniform import uniform_workload
from modbench.counting.counter import FlopCounter
from modbench.counting.restore_state import untouched
from modbench.errors import UserError
from modbench.ledger import Ledger, Phase
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.routing.build import RoutedDecoder

#: Parameters up to which a config that the meta device cannot run is built on the CPU.
_SMALL = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Counted:
    """FLOPs of a phase: ``total`` counts attention by its full square, ``total_model`` by the query-key
    pairs it needs, ``executed`` as PyTorch's CPU kernels run it. ``ledger`` has all three by layer,
    component and direction. ``tokens`` are new tokens, padding included."""

    phase: Phase
    tokens: int
    total: int
    total_model: int
    executed: int
    ledger: Ledger

    @property
    def per_token(self) -> float:
        """``total`` per new token."""
        return self.total / self.tokens


def count(
    model: Any,
    inputs: Any,
    *,
    phase: Phase = "forward",
    past: int = 0,
    around: AbstractContextManager[Any] | None = None,
) -> Counted:
    """Count the FLOPs of ``phase`` as the model runs it on ``inputs``: frozen parameters get no
    gradient, recomputation by activation checkpointing is only ``executed``, experts process what was
    routed to them. The model is left as it was.

    ``model``: a causal language model of transformers on any device, meta included; a config of one (a
    config object, the dict of a config.json, or its path), which is built with random weights on the
    meta device, or on the CPU if it is small and the meta device cannot run it; or a decoder of
    modbench. Attention written out in matmuls (transformers' ``eager``) needs its full square.

    ``inputs``: (sequences, tokens); token ids (B, T); or, for transformers, a dict of keyword tensors
    with ``input_ids``. On the meta device an ``attention_mask`` must be on the CPU, where it can be
    read.

    ``phase``: ``forward`` and ``train`` score every token, training with the model's own loss;
    ``prefill`` fills a cache and scores the last token of each sequence; ``decode`` takes the tokens one
    at a time. ``past`` tokens of each sequence are read into the cache before, uncounted.

    ``around``: a context manager entered around the counted run, such as another counter.

    Raises:
        UserError: no causal language model, unsuitable inputs, an unknown phase, a ``past`` in a phase
            without a cache, a model that the meta device cannot run, or an unknown op.
    """
    sequences, length = _size(inputs)
    uniform_workload(sequences, length, phase, past)
    if isinstance(inputs, Mapping) and (past or phase == "decode"):
        others = sorted(set(inputs) - {"input_ids"})
        if others:
            raise UserError(
                f"inputs {', '.join(others)}: after cached tokens, and in phase 'decode', only "
                "input_ids can be given"
            )
    run = _Run(inputs=inputs, phase=phase, past=past, around=around or nullcontext())
    if isinstance(model, RoutedDecoder):
        counter = run.decoder(model)
    elif isinstance(model, nn.Module):
        hugging_face.check(model)
        counter = run.transformers(model)
    else:
        counter = run.config(model)
    return Counted(
        phase=phase,
        tokens=sequences * length,
        total=counter.total,
        total_model=counter.total_model,
        executed=counter.executed,
        ledger=counter.ledger,
    )


def _size(inputs: Any) -> tuple[int, int]:
    tokens = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else tokens
    if isinstance(shape, tuple | list) and len(shape) == 2 and min(shape) > 0:
        return shape[0], shape[1]
    given = shape if isinstance(shape, tuple | list) else type(inputs).__name__
    raise UserError(
        f"inputs are {given}; give (sequences, tokens), each 1 or more, a tensor of token ids of that "
        "shape, or a dict with such a tensor as input_ids"
    )


def _tokens(inputs: Any, vocabulary: int, device: torch.device) -> Tensor:
    """Return token ids (B, T) on ``device``; for a shape, the same random ids each time."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if device.type == "meta":
        return torch.zeros(*inputs, dtype=torch.long, device=device)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, tuple(inputs), generator=generator).to(device)


class NoMetaError(UserError):
    """A model needs values, which the meta device does not have."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Settings of a run that do not depend on the model."""

    inputs: Any
    phase: Phase
    past: int
    around: AbstractContextManager[Any]

    def transformers(self, model: Any) -> FlopCounter:
        device = next(model.parameters()).device
        if isinstance(self.inputs, Mapping):
            # A mask has no values on the meta device.
            arguments = {
                key: value
                if not isinstance(value, Tensor) or (key == "attention_mask" and device.type == "meta")
                else value.to(device)
                for key, value in self.inputs.items()
            }
        else:
            vocabulary = model.get_input_embeddings().num_embeddings
            arguments = {"input_ids": _tokens(self.inputs, vocabulary, device)}
        try:
            return hugging_face.profile(model, arguments, self.phase, self.past, self.around)
        except UserError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            failed = f"{type(model).__name__} can't run phase '{self.phase}' on"
            why = f"{type(error).__name__}: {error}"
            if device.type == "meta":
                raise NoMetaError(f"{failed} the meta device ({why}); give it on a CPU") from error
            raise UserError(
                f"{failed} these inputs ({why}); change them, or count another phase"
            ) from error

    def config(self, model: Any) -> FlopCounter:
        config = load_config(model) if isinstance(model, str | Path) else model
        if not isinstance(config, Mapping | hugging_face.installed().PreTrainedConfig):
            raise UserError(hugging_face.not_countable(model))
        built = hugging_face.build(config, "meta")
        hugging_face.check(built)
        try:
            return self.transformers(built)
        except NoMetaError:
            if sum(parameter.numel() for parameter in built.parameters()) > _SMALL:
                raise
        with torch.random.fork_rng([]):
            built = hugging_face.build(config, "cpu")
        return self.transformers(built)

    def decoder(self, model: RoutedDecoder) -> FlopCounter:
        if isinstance(self.inputs, Mapping):
            raise UserError("inputs of a decoder of modbench are (sequences, tokens) or token ids")
        vocabulary, on = model.config.vocabulary, model.embedding.weight.device
        tokens_BT = _tokens(self.inputs, vocabulary, on)
        counter, train = FlopCounter(), self.phase == "train"
        with untouched(model, train=train), torch.set_grad_enabled(train):
            if self.phase in ("forward", "train") and not self.past:
                context = Context()
                with self.around, counter:
                    logits_BTV = model(tokens_BT, context)
                    if train:
                        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT.flatten())
                        (loss + context.trace.auxiliary_loss()).backward()
                return counter
            cache = Cache(len(tokens_BT))

            def read(tokens_BT: Tensor, logits: Literal["all", "last"]) -> None:
                model(tokens_BT, Context(selection="causal", cache=cache, logits=logits))

            if self.past:
                read(_tokens((len(tokens_BT), self.past), vocabulary, on), "last")
            with self.around, counter:
                if self.phase == "decode":
                    for token_B1 in tokens_BT.split(1, dim=1):
                        read(token_B1, "all")
                else:
                    read(tokens_BT, "last" if self.phase == "prefill" else "all")
        return counter
