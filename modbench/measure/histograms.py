"""Routed tokens by position, and the load of experts, on held-out text. Raw counts; the report derives
all else.

B sequences, T tokens.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from modbench.model.context import Selection
from modbench.model.trace import Trace

#: Largest number of position bins.
POSITION_BINS = 64


class RoutingHistograms:
    """Histograms over held-out windows of ``sequence`` tokens, the same windows for each rule."""

    def __init__(self, *, sequence: int) -> None:
        self._sequence = sequence
        self._windows = {"causal": 0, "topk": 0}
        self._counts: dict[tuple[str, str, int], np.ndarray] = {}  # by rule, name and layer

    def watch(self, rule: Selection) -> Callable[[torch.Tensor, Trace], None]:
        """The ``watch`` callback for `modbench.measure.loss.heldout_loss`."""

        def see(tokens_BT: torch.Tensor, trace: Trace) -> None:
            self._windows[rule] += len(tokens_BT)
            for (layer, name), shown in trace.tensors.items():
                if name in ("selected", "load"):
                    counts = shown.sum(0) if name == "selected" else shown.round().long()
                    before = self._counts.get((rule, name, layer), 0)
                    self._counts[rule, name, layer] = before + counts.cpu().numpy()

        return see

    def as_dict(self) -> dict[str, Any]:
        """The record's format, see `modbench.report.routing`; {} if nothing is routed."""
        if not self._counts:
            return {}
        each = -(-self._sequence // POSITION_BINS)
        edges = [*range(0, self._sequence, each), self._sequence]
        found = {"windows": self._windows["causal"], "sequence": self._sequence, "edges": edges}
        for rule in self._windows:
            depth, load = (self._of(rule, name) for name in ("selected", "load"))
            routed = {layer: np.add.reduceat(counts, edges[:-1]) for layer, counts in depth.items()}
            found[rule] = {
                "depth": [{"layer": n, "routed": counts.tolist()} for n, counts in routed.items()],
                "experts": [{"layer": n, "load": counts.tolist()} for n, counts in load.items()],
            }
        return found

    def _of(self, rule: str, name: str) -> dict[int, np.ndarray]:
        """Counts by layer."""
        items = sorted(self._counts.items(), key=lambda item: item[0])
        return {layer: counts for (of, what, layer), counts in items if (of, what) == (rule, name)}
