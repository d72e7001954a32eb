"""Routed tokens by position, router weights, and the load of experts, on held-out text. Raw counts; the
report derives all else.

B sequences, T tokens, N numbers.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from modbench.model.context import Selection
from modbench.model.trace import Trace

#: Largest number of position bins; more would make records longer.
POSITION_BINS = 64
#: Largest number of bins of router weights; more would make records longer.
WEIGHT_BINS = 40


class Weights:
    """Histogram of numbers, and of the selected ones among them. Bins are a power of two wide, the
    narrowest with which `WEIGHT_BINS` suffice, and their edges are multiples of the width; so the bins
    do not depend on the order of the numbers. NaN and Inf are left out."""

    def __init__(self) -> None:
        self._exponent, self._first = -20, 0
        self._counts_2N = np.zeros((2, 0), dtype=np.int64)

    def add(self, values: torch.Tensor, selected: torch.Tensor) -> None:
        """Add ``values``; ``selected`` is a mask of the same shape."""
        bin_N = np.floor(values.double().cpu().numpy().ravel() / 2.0**self._exponent)
        finite_N = np.isfinite(bin_N)
        once_2N = np.stack((finite_N, finite_N & selected.cpu().numpy().ravel()))[:, finite_N]
        counts_2N = np.concatenate((self._counts_2N, once_2N), axis=1)
        bin_N = np.concatenate((np.arange(self._counts_2N.shape[1]) + self._first, bin_N[finite_N]))
        if not bin_N.size:
            return
        low, high, wider = bin_N.min(), bin_N.max(), 0
        while high - low >= WEIGHT_BINS:
            low, high, wider = low // 2, high // 2, wider + 1
        bin_N = (bin_N // 2**wider - low).astype(np.int64)
        self._exponent, self._first = self._exponent + wider, int(low)
        self._counts_2N = np.stack([np.bincount(bin_N, row_N).astype(np.int64) for row_N in counts_2N])

    def as_dict(self) -> dict[str, Any] | None:
        """The format of `modbench.records.sections`; None if all numbers are equal, as the gates of a
        scheme without router weights are."""
        if self._counts_2N.shape[1] < 2:
            return None
        every, selected = self._counts_2N.tolist()
        return {"exponent": self._exponent, "first": self._first, "all": every, "selected": selected}


class RoutingHistograms:
    """Histograms over held-out windows of ``sequence`` tokens, the same windows for each rule."""

    def __init__(self, *, sequence: int) -> None:
        self._sequence = sequence
        self._windows = {"causal": 0, "topk": 0}
        self._counts: dict[tuple[str, str, int], np.ndarray] = {}  # by rule, name and layer
        self._gates: dict[tuple[str, int], Weights] = defaultdict(Weights)  # by rule and layer

    def watch(self, rule: Selection) -> Callable[[torch.Tensor, Trace], None]:
        """The ``watch`` callback for `modbench.measure.loss.heldout_loss`."""

        def see(tokens_BT: torch.Tensor, trace: Trace) -> None:
            self._windows[rule] += len(tokens_BT)
            for (layer, name), shown in trace.tensors.items():
                if name in ("selected", "load"):
                    counts = shown.sum(0) if name == "selected" else shown.round().long()
                    before = self._counts.get((rule, name, layer), 0)
                    self._counts[rule, name, layer] = before + counts.cpu().numpy()
                if name == "selected" and (layer, "gate") in trace.tensors:
                    self._gates[rule, layer].add(trace.tensors[layer, "gate"], shown)

        return see

    def as_dict(self) -> dict[str, Any]:
        """The record's format, see `modbench.records.sections`; {} if nothing is routed."""
        if not self._counts:
            return {}
        each = -(-self._sequence // POSITION_BINS)
        edges = [*range(0, self._sequence, each), self._sequence]
        record = {"windows": self._windows["causal"], "sequence": self._sequence, "edges": edges}
        for rule in self._windows:
            depth, load = (self._of(rule, name) for name in ("selected", "load"))
            routed = {layer: np.add.reduceat(counts, edges[:-1]) for layer, counts in depth.items()}
            record[rule] = {
                "depth": [
                    {"layer": n, "routed": counts.tolist()} | self._weights(rule, n)
                    for n, counts in routed.items()
                ],
                "experts": [{"layer": n, "load": counts.tolist()} for n, counts in load.items()],
            }
        return record

    def _weights(self, rule: str, layer: int) -> dict[str, Any]:
        gates = self._gates[rule, layer].as_dict()
        return {"gates": gates} if gates else {}

    def _of(self, rule: str, name: str) -> dict[int, np.ndarray]:
        """Counts by layer."""
        items = sorted(self._counts.items(), key=lambda item: item[0])
        return {layer: counts for (of, what, layer), counts in items if (of, what) == (rule, name)}
