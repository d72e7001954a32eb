"""Profiles a causal language model: what each phase really runs, op by op, layer by layer.

B sequences, T tokens.
"""

from collections.abc import Mapping
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

#: A model of which no phase can be run on the meta device is built on the CPU up to this size.
_SMALL = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Counted:
    """FLOPs of a phase: ``total`` with attention by its full square, ``total_model`` by the pairs that
    it needs, ``executed`` as PyTorch's CPU kernels run it. ``ledger`` has all three by layer, component
    and direction. ``tokens``: new ones, padding included."""

    phase: Phase
    tokens: int
    total: int
    total_model: int
    executed: int
    ledger: Ledger

    @property
    def per_token(self) -> float:
        """``total`` by new token."""
        return self.total / self.tokens


def count(model: Any, inputs: Any, *, phase: Phase = "forward", past: int = 0) -> Counted:
    """What ``phase`` of ``model`` costs on ``inputs``, counted as it runs: frozen parameters get no
    gradient, activation checkpointing is executed and not needed, experts cost what was routed to them.

    ``model``: a causal language model of transformers on any device, meta included; a config of one (a
    config object, the dict of a config.json, or the path of one), from which it is built with random
    weights on the meta device, or, where that can't run it and it is small, on the CPU; or a `Decoder`
    of modbench. It is left as it was. Attention is counted as the model runs it: written out (the
    ``eager`` of transformers), its square is needed, too.

    ``inputs``: (sequences, tokens); token ids (B, T); or for transformers a dict of keyword tensors with
    ``input_ids`` among them. On the meta device an ``attention_mask`` belongs on the CPU, where it can
    be read.

    Phases: ``forward`` and ``train`` score every token, training with the model's own loss; ``prefill``
    fills a cache and scores the last token of each sequence; ``decode`` takes the tokens one at a time.
    Before them, ``past`` tokens of each sequence were read into the cache, which isn't counted.

    Raises:
        UserError: no causal language model, inputs that it can't take, an unknown phase, a ``past``
            where there can be none, a model that the meta device can't run, or an op that isn't known.
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
    if isinstance(model, RoutedDecoder):
        counter = _profile_decoder(model, inputs, phase, past)
    elif isinstance(model, nn.Module):
        hugging_face.check(model)
        counter = _profile(model, inputs, phase, past)
    else:
        counter = _profile_config(model, inputs, phase, past)
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
    if (
        not isinstance(shape, tuple | list)
        or len(shape) != 2
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        given = shape if isinstance(shape, tuple | list) else type(inputs).__name__
        raise UserError(
            f"inputs are {given}; give (sequences, tokens), each 1 or more, a tensor of token ids of "
            "that shape, or a dict with such a tensor as input_ids"
        )
    return shape[0], shape[1]


def _tokens(inputs: Any, vocabulary: int, device: torch.device) -> Tensor:
    """Token ids (B, T) on ``device``; where only a shape is given, the same random ones each time."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if device.type == "meta":
        return torch.zeros(*inputs, dtype=torch.long, device=device)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, tuple(inputs), generator=generator).to(device)


def _profile(model: Any, inputs: Any, phase: Phase, past: int) -> FlopCounter:
    device = next(model.parameters()).device
    if isinstance(inputs, Mapping):
        # The meta device can't hold what a mask lets through.
        arguments = {
            key: value
            if not isinstance(value, Tensor) or (key == "attention_mask" and device.type == "meta")
            else value.to(device)
            for key, value in inputs.items()
        }
    else:
        vocabulary = model.get_input_embeddings().num_embeddings
        arguments = {"input_ids": _tokens(inputs, vocabulary, device)}
    try:
        return hugging_face.profile(model, arguments, phase, past)
    except UserError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        name, why = type(model).__name__, f"{type(error).__name__}: {error}"
        if device.type == "meta":
            raise NoMetaError(
                f"{name} can't run phase '{phase}' on the meta device ({why}); give it on a CPU"
            ) from error
        raise UserError(
            f"{name} can't run phase '{phase}' on these inputs ({why}); mend them, or count another "
            "phase"
        ) from error


class NoMetaError(UserError):
    """A model needs values that the meta device has not."""


def _profile_config(model: Any, inputs: Any, phase: Phase, past: int) -> FlopCounter:
    config = load_config(model) if isinstance(model, str | Path) else model
    if not isinstance(config, Mapping | hugging_face.installed().PreTrainedConfig):
        raise UserError(
            f"{type(model).__name__} can't be counted; give a causal language model of transformers, a "
            "config of one, or a decoder of modbench"
        )
    built = hugging_face.build(config, "meta")
    hugging_face.check(built)
    try:
        return _profile(built, inputs, phase, past)
    except NoMetaError:
        if sum(parameter.numel() for parameter in built.parameters()) > _SMALL:
            raise
    with torch.random.fork_rng([]):
        built = hugging_face.build(config, "cpu")
    return _profile(built, inputs, phase, past)


def _profile_decoder(model: RoutedDecoder, inputs: Any, phase: Phase, past: int) -> FlopCounter:
    if isinstance(inputs, Mapping):
        raise UserError("inputs of a decoder of modbench are (sequences, tokens) or token ids")
    on = model.embedding.weight.device
    tokens_BT = _tokens(inputs, model.config.vocabulary, on)
    counter, train = FlopCounter(), phase == "train"
    with untouched(model, train=train), torch.set_grad_enabled(train):
        if phase in ("forward", "train"):
            _score(model, tokens_BT, past, counter, train)
        else:
            _infer(model, tokens_BT, past, counter, phase)
    return counter


def _score(
    model: RoutedDecoder, tokens_BT: Tensor, past: int, counter: FlopCounter, train: bool
) -> None:
    if past:
        _infer(model, tokens_BT, past, counter, "forward")
        return
    context = Context()
    with counter:
        logits_BTV = model(tokens_BT, context)
        if train:
            loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT.flatten())
            (loss + context.trace.auxiliary_loss()).backward()


def _infer(
    model: RoutedDecoder, tokens_BT: Tensor, past: int, counter: FlopCounter, phase: Phase
) -> None:
    """Under the causal rule, after ``past`` tokens that aren't counted."""
    cache = Cache(len(tokens_BT))

    def read(tokens_BT: Tensor, logits: Literal["all", "last"]) -> None:
        model(tokens_BT, Context(selection="causal", cache=cache, logits=logits))

    if past:
        read(_tokens((len(tokens_BT), past), model.config.vocabulary, tokens_BT.device), "last")
    with counter:
        if phase == "decode":
            for place in range(tokens_BT.shape[1]):
                read(tokens_BT[:, place : place + 1], "all")
        else:
            read(tokens_BT, "last" if phase == "prefill" else "all")
