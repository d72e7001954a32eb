"""Trace: what routed layers report about one forward pass.

B sequences, T tokens, N tokens that are not padding, E experts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.typed import SERIES, SERIES_WORDS


class Trace:
    """Losses, tensors and counts that routed layers report.

    Depth-routed layers show ``selected`` (B, T) bool; ``gate`` (B, T), the factor applied, or that would
    be applied to a skipped token; under the training rule ``predicted`` (B, T) bool, the decision of the
    causal rule; and ``candidates`` (B, T) bool if not every token could be selected. Schemes in which
    tokens choose a depth show ``depths``, the number of tokens by depth. Layers with experts show
    ``load`` (E,), tokens per expert, no-op experts last; ``dropped`` (E,), assignments beyond capacity;
    and where experts choose, ``taken``, the number of experts of each token. If the trace is detailed
    they also show for each token and expert, (N, E), the router's ``scores`` before renormalisation and
    scaling, ``chosen``, and the gate applied, ``weights``, 0 where it is not chosen; and with no-op
    experts ``no_op`` (N,), the number of no-op choices of each token.
    """

    def __init__(self, *, detailed: bool = False) -> None:
        #: Auxiliary losses, already scaled, by (layer, name). Training adds them to the cross-entropy.
        self.losses: dict[tuple[int, str], Tensor] = {}
        # Of a repetition: a compiled layer must keep the same tensors for its backward pass as before.
        self._again: dict[tuple[int, str], Tensor] = {}
        #: Everything else that a layer shows, by (layer, name).
        self.tensors: dict[tuple[int, str], Tensor] = {}
        #: Numbers that the router's author records, by name.
        self.series: dict[str, list[Tensor]] = {}
        self._counts: dict[tuple[int, str], Tensor | tuple[int, ...]] = {}
        #: True while activation checkpointing repeats a forward pass: everything is reported already,
        #: and state that training updates (averages, biases) must not be updated twice.
        self.repeated = False
        #: Keep the choice of experts, too; a training step does not.
        self.detailed = detailed
        #: Set where a routing decision was replaced by an even one (`modbench.routing.force_balance`).
        self.forced = False

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Mark the forward passes inside as repetitions."""
        self.repeated = True
        try:
            yield
        finally:
            self.repeated = False
            self._again.clear()

    def loss(self, layer: int, name: str, value: Tensor) -> None:
        """Report an auxiliary loss, a tensor of one number."""
        (self._again if self.repeated else self.losses)[layer, name] = value

    def show(self, layer: int, name: str, value: Tensor) -> None:
        """Report a tensor."""
        if not self.repeated:
            self.tensors[layer, name] = value.detach()

    def record(self, name: str, value: Tensor | float) -> None:
        """Record a number of the author's own series ``name``, such as a temperature. At each of
        ``[measure] routing_points``, the record of a run, its trackers and a figure have the mean of all
        numbers of that name. Raise a `UserError` for another name than `SERIES`, or several numbers."""
        number = torch.as_tensor(value).detach()
        if not SERIES.fullmatch(name) or number.numel() != 1:
            raise UserError(
                f"trace.record({name!r}, ...): the name must be {SERIES_WORDS}, the value one number"
            )
        if not self.repeated:
            self.series.setdefault(name, []).append(number)

    def count(self, layer: int, name: str, counts: Tensor | Sequence[int]) -> None:
        """Report the number of routed tokens (one count per sequence) or assignments (one count). A
        tensor stays on its device until it is read, so that the host does not wait for a GPU."""
        if not self.repeated:
            self._counts[layer, name] = counts if isinstance(counts, Tensor) else tuple(counts)

    @property
    def counts(self) -> dict[tuple[int, str], tuple[int, ...]]:
        """Realised routing counts, as `modbench.ledger.Workload` takes them."""
        return {
            key: tuple(value.reshape(-1).tolist()) if isinstance(value, Tensor) else value
            for key, value in self._counts.items()
        }

    @staticmethod
    def read(
        loss: Tensor, traces: "Sequence[Trace]"
    ) -> tuple[float, list[dict[tuple[int, str], tuple[int, ...]]]]:
        """Return the number ``loss`` and the `counts` of each of ``traces``; the host waits for a GPU
        once."""
        shown = [loss.detach(), *(value for trace in traces for value in trace._counts.values())]
        parts = [value.reshape(-1).double() for value in shown if isinstance(value, Tensor)]
        numbers = torch.cat(parts).tolist()
        left = iter(numbers[1:])
        counts = [
            {
                key: tuple(map(int, islice(left, value.numel()))) if isinstance(value, Tensor) else value
                for key, value in trace._counts.items()
            }
            for trace in traces
        ]
        return numbers[0], counts

    def auxiliary_loss(self) -> Tensor | float:
        """Return the sum of all auxiliary losses, 0.0 if there are none."""
        return sum(self.losses.values(), start=0.0)
