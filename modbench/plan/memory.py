"""Memory of one GPU in a training step, from shapes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.kernels.cross_entropy.fast import part_rows
from modbench.model.language_model import LanguageModel
from modbench.plan.activations import Compute, training_activations
from modbench.plan.without_values import Kernels
from modbench.routing.expert_bank import ExpertBank

#: Bytes per parameter of weights, gradients and optimizer. ``fp32``: float32 weights under autocast and
#: AdamW's two moments, as `modbench.train.loop`. ``bf16``: bfloat16 weights and gradients, and float32
#: weights and moments in the optimizer.
STATES: Mapping[str, tuple[int, int, int]] = {"fp32": (4, 4, 8), "bf16": (2, 2, 12)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training of a model on its GPUs. Raise a `UserError` if a field is out of range."""

    state: Literal["fp32", "bf16"] = "fp32"
    shard: int = 1  #: GPUs that share parameters, gradients and optimizer (FSDP, ZeRO-3)
    expert: int = 1  #: GPUs that share the experts, which then are not in ``shard``
    checkpoint: bool = False  #: keep only the input of each layer and recompute the rest
    micro_batch: int = 1  #: sequences per GPU

    def __post_init__(self) -> None:
        for name in ("shard", "expert", "micro_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")

    @property
    def compute(self) -> Compute:
        """Autocast for unsharded float32 weights; sharded weights are gathered in bfloat16 (FSDP's mixed
        precision), and the residual stream then is bfloat16 too."""
        return "autocast" if self.state == "fp32" and self.shard == 1 else "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU at the peak of a training step that accumulates gradients. Without the CUDA
    context, communication buffers and fragmentation."""

    parameters: int
    gradients: int
    optimizer: int
    #: gathered from shards: the layer at work, a prefetched one, and a layer's gradients
    gathered: int
    #: everything else: kept for the backward pass, copies of weights in another dtype, temporary
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


class Measured:
    """The memory of one decoder, by micro-batch, cached."""

    def __init__(
        self,
        decoder: LanguageModel,
        length: int,
        recipe: Recipe,
        kernels: Kernels = "gpu",
        compute: Compute | None = None,
    ) -> None:
        """``compute``: by default that of the recipe."""
        self._decoder = decoder
        self._length = length
        self._recipe = recipe
        self._kernels: Kernels = kernels
        self._compute = compute or recipe.compute
        weights = list(decoder.parameters())
        banks = set[Tensor]()  # of experts that are shared out by themselves
        if recipe.expert > 1:
            modules = (part for part in decoder.modules() if isinstance(part, ExpertBank))
            banks = {weight for bank in modules for weight in bank.parameters()}

        def held(of: Iterable[Tensor]) -> int:
            of = list(of)
            apart = _elements(weight for weight in of if weight in banks)
            return -(-(_elements(of) - apart) // recipe.shard) - (-apart // recipe.expert)

        self._held = held(weights)
        # A frozen weight has neither gradient nor optimizer state.
        self._learned = held(weight for weight in weights if weight.requires_grad)
        self._gathered = 0
        if recipe.shard > 1:
            layers = [[p for p in layer.parameters() if p not in banks] for layer in decoder.layers]
            largest_layer = max(map(_elements, layers))
            outside = _elements(weights) - _elements(decoder.layers.parameters())
            # In bfloat16: two layers, the gradients of one, and everything outside the layers.
            self._gathered = 2 * (3 * largest_layer + outside)

    def memory(self, sequences: int) -> Memory:
        """At a micro-batch of ``sequences``."""
        weights, gradients, optimizer = STATES[self._recipe.state]
        return Memory(
            parameters=self._held * weights,
            gradients=self._learned * gradients,
            optimizer=self._learned * optimizer,
            gathered=self._gathered,
            activations=self._run(sequences),
        )

    @cache  # noqa: B019
    def _run(self, sequences: int) -> int:
        return training_activations(
            self._decoder,
            sequences,
            self._length,
            compute=self._compute,
            kernels=self._kernels,
            checkpoint=self._recipe.checkpoint,
        )

    def largest_micro_batch(self, room: int) -> int:
        """The largest number of sequences that fits ``room`` bytes; may be 0."""
        parts = self._in_parts
        if self._left(parts, room) < 0:
            return self._fitting(room, 1, parts) if self._left(1, room) >= 0 else 0
        more = 2 * parts
        while (left := self._left(more, room)) >= 0:
            each = (self._left(parts, room) - left) / (more - parts)
            parts, more = more, more + 1 + int(left / each)
        return self._fitting(room, parts, more)

    def _fitting(self, room: int, fits: int, fails: int) -> int:
        """The largest number of sequences that fits, between ``fits`` and ``fails``, on the line through
        both."""
        while fails - fits > 1:
            low, high = self._left(fits, room), self._left(fails, room)
            guess = fits + int(low * (fails - fits) / (low - high))
            guess = min(max(guess, fits + 1), fails - 1)
            fits, fails = (guess, fails) if self._left(guess, room) >= 0 else (fits, guess)
        return fits

    def _left(self, sequences: int, room: int) -> int:
        return room - self.memory(sequences).total

    @property
    def _in_parts(self) -> int:
        """Sequences from which on the loss holds the logits of a part of them only: memory falls there,
        and grows before and after it."""
        on = torch.device("cuda" if self._kernels == "gpu" else "cpu")
        return part_rows(self._decoder.config.vocabulary, on) // self._length + 1


def _elements(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)
