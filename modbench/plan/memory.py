"""Memory of one GPU in a training step, from shapes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal

from torch import Tensor

from modbench.errors import UserError
from modbench.plan.activations import Compute, Kernels, Steps
from modbench.plan.search import largest
from modbench.routing.build import RoutedDecoder

#: Bytes per parameter of weights, gradients and optimizer. ``fp32``: float32 weights under autocast and
#: AdamW's two moments, as `modbench.train.loop`. ``bf16``: bfloat16 weights and gradients, and float32
#: weights and moments in the optimizer.
STATES: Mapping[str, tuple[int, int, int]] = {"fp32": (4, 4, 8), "bf16": (2, 2, 12)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained on its GPUs.

    Raises:
        UserError: a field is out of range.
    """

    state: Literal["fp32", "bf16"] = "fp32"
    shard: int = 1  #: GPUs that share parameters, gradients and optimizer (FSDP, ZeRO-3)
    checkpoint: bool = False  #: keep only the input of each layer and recompute the rest
    micro_batch: int = 1  #: sequences per GPU

    def __post_init__(self) -> None:
        for name in ("shard", "micro_batch"):
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
    copies: int  #: weights in another dtype kept for the backward pass, such as autocast's
    activations: int  #: kept by the layers for the backward pass
    logits: int  #: peak of embedding, head and loss
    #: largest temporary use by a layer, with the tokens and the gradient of a tied head
    working: int

    @property
    def total(self) -> int:
        """``logits`` and ``working`` are never held at once: the larger counts."""
        return sum(getattr(self, field.name) for field in fields(self)) - min(self.logits, self.working)


class Measured:
    """The memory of one decoder, by micro-batch, cached."""

    def __init__(
        self,
        decoder: RoutedDecoder,
        length: int,
        recipe: Recipe,
        kernels: Kernels = "gpu",
        compute: Compute | None = None,
    ) -> None:
        """``compute``: by default that of the recipe."""
        self._recipe = recipe
        self._steps = Steps(decoder, length, compute=compute or recipe.compute, kernels=kernels)
        weights, shard = list(decoder.parameters()), recipe.shard
        self._held = -(-_elements(weights) // shard)
        # A frozen weight has neither gradient nor optimizer state.
        self._learned = -(-_elements(weight for weight in weights if weight.requires_grad) // shard)
        self._gathered = 0
        if shard > 1:
            largest_layer = max(_elements(layer.parameters()) for layer in decoder.layers)
            outside = _elements(weights) - _elements(decoder.layers.parameters())
            # In bfloat16: two layers, the gradients of one, and everything outside the layers.
            self._gathered = 2 * (3 * largest_layer + outside)

    @cache  # noqa: B019
    def memory(self, sequences: int) -> Memory:
        """At a micro-batch of ``sequences``."""
        outside = self._steps.outside(sequences)
        kinds = {number: self._steps.layer(number, sequences) for number in set(self._steps.kinds)}
        activations = copies = cast = peak = 0
        for number in self._steps.kinds:
            layer, working = kinds[number], kinds[number].working
            activations += layer.stream
            cast += layer.copies
            if self._recipe.checkpoint:
                working += layer.kept + layer.copies
            else:
                activations += layer.kept
                copies += layer.copies
            # While a layer runs backward, what later layers kept is freed.
            peak = max(peak, activations + copies + working)
        if self._steps.compute == "autocast":
            # Autocast holds all weights that it cast until the forward pass ends.
            peak = max(peak, activations + cast)
        weights, gradients, optimizer = STATES[self._recipe.state]
        return Memory(
            parameters=self._held * weights,
            gradients=self._learned * gradients,
            optimizer=self._learned * optimizer,
            gathered=self._gathered,
            copies=copies,
            activations=activations,
            logits=outside.peak,
            working=outside.stays + peak - activations - copies,
        )

    def largest_micro_batch(self, room: int) -> int:
        """The largest number of sequences that fits ``room`` bytes; may be 0."""
        one = self.memory(1).total
        if one > room:
            return 0
        # Almost linear in the micro-batch.
        guess = 1 + (room - one) // max(1, self.memory(2).total - one)
        return largest(lambda sequences: self.memory(sequences).total <= room, guess)


def _elements(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)
