"""Counts what each phase of a causal language model runs, by layer and component.

B sequences, T tokens.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.accounting.literature import uniform_workload
from modbench.counting.counter import FlopCounter
from modbench.counting.restore_state import untouched
from modbench.errors import UserError
from modbench.hf import passes as hugging_face
from modbench.ledger import Ledger, Phase
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.routing.build import RoutedDecoder


@dataclass(frozen=True, kw_only=True)
class Counted:
    """FLOPs of a phase by direction, and by layer and component for a decoder of modbench. ``tokens``
    are new tokens, padding included."""

    phase: Phase
    tokens: int
    ledger: Ledger

    @property
    def total(self) -> int:
        """FLOPs with attention by its full square."""
        return self.ledger.total("full")

    @property
    def total_model(self) -> int:
        """FLOPs with attention by the query-key pairs that it needs."""
        return self.ledger.total("model")

    @property
    def executed(self) -> int:
        """FLOPs as PyTorch's CPU kernels run them."""
        return self.ledger.total("executed")

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
    meta device, and a warning names keys that are ignored; or a decoder of modbench. Attention written
    out in matmuls (transformers' ``eager``) needs its full square. For other inputs, such as padding
    masks, run the model inside `FlopCounter`.

    ``inputs``: (sequences, tokens), or token ids (B, T).

    ``phase``: ``forward`` and ``train`` score every token, training with the model's own loss;
    ``prefill`` fills a cache and scores the last token of each sequence; ``decode`` takes the tokens one
    at a time. ``past`` tokens of each sequence are read into the cache before, uncounted.

    ``around``: a context manager entered around the counted run, such as another counter. Raise a
    `UserError` if ``model`` is no causal language model or cannot run, the inputs do not fit, the phase
    is unknown or has no cache for ``past``, or an op is unknown."""
    shape = tuple(inputs.shape if isinstance(inputs, Tensor) else inputs)
    if len(shape) != 2 or min(shape) < 1:
        raise UserError(f"inputs are {shape}; give (sequences, tokens), each 1 or more, or token ids")
    sequences, length = shape
    uniform_workload(sequences, length, phase, past)
    if not isinstance(model, nn.Module):
        model = hugging_face.build(model, "meta")
    device = next(model.parameters()).device
    counter = FlopCounter()
    cached = past > 0 or phase in ("prefill", "decode")
    train = phase == "train"
    if isinstance(model, RoutedDecoder):
        vocabulary = model.config.vocabulary
        run = _decoder_pass(model, sequences if cached else 0)
        ready: AbstractContextManager[Any] = nullcontext()
    else:
        hugging_face.check(model)
        vocabulary = model.get_input_embeddings().num_embeddings
        run = hugging_face.model_pass(model, cached or device.type == "meta")
        ready = hugging_face.ready(model, phase, counter)
    tokens_BT = inputs.to(device) if isinstance(inputs, Tensor) else _tokens(shape, vocabulary, device)
    with ready, untouched(model, train=train), torch.set_grad_enabled(train):
        if past:
            with FlopCounter():  # without which the meta device takes no mask with values
                run(_tokens((sequences, past), vocabulary, device), "last")
        with around or nullcontext(), counter:
            if phase == "decode":
                for token_B1 in tokens_BT.split(1, dim=1):
                    run(token_B1, "all")
            elif train:
                run(tokens_BT, "loss").backward()
            else:
                run(tokens_BT, "last" if phase == "prefill" else "all")
    return Counted(phase=phase, tokens=sequences * length, ledger=counter.ledger)


def _tokens(shape: Sequence[int], vocabulary: int, device: torch.device) -> Tensor:
    """Return token ids (B, T) on ``device``, the same random ids each time."""
    if device.type == "meta":
        return torch.zeros(*shape, dtype=torch.long, device=device)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, tuple(shape), generator=generator).to(device)


def _decoder_pass(model: RoutedDecoder, cached: int) -> hugging_face.Pass:
    """Return what runs ``model``, with a cache of ``cached`` sequences if there are any."""
    cache = Cache(cached) if cached else None

    def run(tokens_BT: Tensor, wanted: hugging_face.Wanted) -> Any:
        if cache is not None:
            logits: Literal["all", "last"] = "last" if wanted == "last" else "all"
            return model(tokens_BT, Context(selection="causal", cache=cache, logits=logits))
        context = Context()
        logits_BTV = model(tokens_BT, context)
        if wanted != "loss":
            return logits_BTV
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT.flatten())
        return loss + context.trace.auxiliary_loss()

    return run
