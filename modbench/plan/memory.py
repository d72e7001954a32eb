"""Memory of one GPU in a training step, from shapes alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

from torch import Tensor

from modbench.errors import UserError, known_names
from modbench.plan.activations import Compute, Kernels, Steps
from modbench.plan.search import largest
from modbench.routing.build import RoutedDecoder
from modbench.routing.expert_bank import ExpertBank

#: Bytes per parameter of weights, gradients and optimizer. ``fp32`` is `modbench.train.loop`: float32
#: weights under autocast, AdamW's two moments. ``bf16`` has bfloat16 weights and gradients, and keeps
#: float32 weights besides the two moments.
STATES: Mapping[str, tuple[int, int, int]] = {"fp32": (4, 4, 8), "bf16": (2, 2, 12)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained on its GPUs.

    Raises:
        UserError: a field is out of range, with the value and what would be right.
    """

    state: Literal["fp32", "bf16"] = "fp32"
    shard: int = 1  #: GPUs that share parameters, gradients and optimizer (FSDP, ZeRO-3); 1: none do
    expert_parallel: int = 1  #: GPUs that the experts of each layer are divided over
    checkpoint: bool = False  #: keep only the input of each layer, and run its forward pass again
    micro_batch: int = 1  #: sequences of one GPU at a time

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise UserError(f"state '{self.state}' is not known; {known_names(self.state, STATES)}")
        for name in ("shard", "expert_parallel", "micro_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        larger, smaller = max(self.shard, self.expert_parallel), min(self.shard, self.expert_parallel)
        if larger % smaller:
            raise UserError(
                f"shard is {self.shard} and expert_parallel {self.expert_parallel}; one must divide "
                "the other"
            )

    def fits_on(self, gpus: int) -> None:
        """
        Raises:
            UserError: so many GPUs can't be divided so.
        """
        for name in ("shard", "expert_parallel"):
            if gpus % getattr(self, name):
                raise UserError(f"{name} is {getattr(self, name)} of {gpus} gpus; it must divide them")

    @property
    def compute(self) -> Compute:
        """Autocast where one GPU holds float32 weights; sharded weights are gathered in bfloat16 (a
        mixed-precision policy of FSDP), and then the stream is bfloat16, too."""
        return "autocast" if self.state == "fp32" and self.shard == 1 else "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU at the peak of a training step that has gradients of an earlier micro-batch
    already. Not among them: what the CUDA context, communication buffers and an allocator's
    fragmentation take."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: (
        int  #: layers put together from their shards: one at work, one fetched ahead, its gradients
    )
    copies: int  #: weights in another dtype that the backward pass keeps, such as autocast's
    activations: int  #: what the layers keep for the backward pass
    logits: int  #: logits, loss and what else stands outside the layers, at their peak
    #: the largest layer's forward and backward pass, on top of what it keeps; with it the gradient of a
    #: tied head, which waits for the embedding's
    working: int

    @property
    def total(self) -> int:
        """The logits and a layer's backward pass are never held at once: of them the larger."""
        return sum(getattr(self, field.name) for field in fields(self)) - min(self.logits, self.working)


class Measured:
    """The memory of one decoder, by micro-batch; each is measured once."""

    def __init__(
        self,
        decoder: RoutedDecoder,
        length: int,
        recipe: Recipe,
        kernels: Kernels = "gpu",
        compute: Compute | None = None,
    ) -> None:
        """``compute``: what the recipe says where None.

        Raises:
            UserError: experts that can't be divided so.
        """
        self._recipe = recipe
        banks = [part for part in decoder.modules() if isinstance(part, ExpertBank)]
        if recipe.expert_parallel > 1:
            fewest = min((bank.experts for bank in banks), default=0)
            if not banks:
                raise UserError(
                    f"expert_parallel is {recipe.expert_parallel} and router '{decoder.router.name}' "
                    "has no bank of experts; leave it at 1"
                )
            if recipe.expert_parallel > fewest:
                raise UserError(
                    f"expert_parallel is {recipe.expert_parallel} with {fewest} experts; it must be no "
                    "more than the experts"
                )
        self._steps = Steps(
            decoder,
            length,
            compute=recipe.compute if compute is None else compute,
            kernels=kernels,
            expert_parallel=recipe.expert_parallel,
        )
        self._states(decoder)
        self._known: dict[int, Memory] = {}

    def _states(self, decoder: RoutedDecoder) -> None:
        recipe, divided = self._recipe, self._recipe.expert_parallel
        experts = {
            id(weight)
            for part in decoder.modules()
            if isinstance(part, ExpertBank)
            for weight in part.parameters()
        }

        def held(weights: Sequence[Tensor]) -> int:
            in_experts = sum(weight.numel() for weight in weights if id(weight) in experts)
            others = sum(weight.numel() for weight in weights) - in_experts
            # Of the GPUs that share, as many as there are kinds of experts hold different ones already.
            return -(-others // recipe.shard) - (-in_experts // max(recipe.shard, divided))

        weights = list(decoder.parameters())
        self._held = held(weights)
        # A weight that a router has frozen has neither gradient nor optimizer state.
        self._learned = held([weight for weight in weights if weight.requires_grad])
        self._gathered = 0
        if recipe.shard == 1:
            return
        most = 0
        for layer in decoder.layers:
            own = sum(w.numel() for w in layer.parameters() if id(w) not in experts)
            if recipe.shard > divided:
                own += sum(w.numel() for w in layer.parameters() if id(w) in experts) // divided
            most = max(most, own)
        of_layers = sum(weight.numel() for weight in decoder.layers.parameters())
        outside = sum(weight.numel() for weight in weights) - of_layers
        # Two layers and one layer's gradients, and what stands outside the layers; in bfloat16.
        self._gathered = 2 * (3 * most + outside)

    def memory(self, micro_batch: int) -> Memory:
        """At ``micro_batch`` sequences."""
        if micro_batch not in self._known:
            self._known[micro_batch] = self._measure(micro_batch)
        return self._known[micro_batch]

    def _measure(self, sequences: int) -> Memory:
        outside = self._steps.outside(sequences)
        kinds = {number: self._steps.layer(number, sequences) for number in self._steps.kinds}
        layers = [(count, kinds[number]) for number, count in self._steps.kinds.items()]
        streams = sum(count * layer.stream for count, layer in layers)
        kept = sum(count * layer.kept for count, layer in layers)
        copies = sum(count * layer.copies for count, layer in layers)
        # While a layer works, what later ones keep is not there yet, or not any more.
        working = max(
            layer.working - sum(kinds[other].kept for other in self._steps.later(number))
            for number, layer in kinds.items()
        )
        if self._recipe.checkpoint:
            kept, copies = 0, 0
            working = max(layer.working + layer.kept + layer.copies for _, layer in layers)
        working += outside.waiting
        if self._recipe.checkpoint:  # nothing waits yet
            # The forward pass ends with all weights that autocast remembers.
            working = max(working, self._remembered)
        weights, gradients, optimizer = STATES[self._recipe.state]
        return Memory(
            parameters=self._held * weights,
            gradients=self._learned * gradients,
            optimizer=self._learned * optimizer,
            gathered=self._gathered,
            copies=outside.copies + copies,
            activations=streams + kept,
            logits=outside.peak,
            working=outside.tokens + working,
        )

    @cached_property
    def _remembered(self) -> int:
        if self._recipe.compute != "autocast":
            return 0
        kinds = self._steps.kinds
        return sum(count * self._steps.remembered(number) for number, count in kinds.items())

    def largest_micro_batch(self, room: int) -> int:
        """The most sequences that ``room`` bytes hold; 0 if not even one."""
        one = self.memory(1).total
        if one > room:
            return 0
        # What grows with the micro-batch grows almost in proportion.
        guess = 1 + (room - one) // max(1, self.memory(2).total - one)
        return largest(lambda sequences: self.memory(sequences).total <= room, guess)
