"""Routing histograms on held-out text: routed tokens by position, token id and router weight, and the
load of experts. Raw counts; the report derives all else.

B sequences, T tokens, N numbers, V vocabulary, E experts.
"""

from collections.abc import Callable, Sequence
from math import floor
from typing import Any

import numpy as np
import torch

from modbench.model.context import Selection
from modbench.model.trace import Trace

#: Largest number of position bins.
POSITION_BINS = 64
#: Largest number of bins of a weight histogram.
WEIGHT_BINS = 40
#: Number of token ids that are kept, the most frequent ones.
KEPT_IDS = 256

#: Log2 of the narrowest bin width.
_FINEST = -20


class Weights:
    """Histogram of numbers, and of the selected ones among them. Bins are a power of two wide, the
    narrowest with which `WEIGHT_BINS` suffice, and their edges are multiples of the width; so the bins
    do not depend on the order of the numbers. NaN and Inf are left out."""

    def __init__(self) -> None:
        self._exponent, self._first = _FINEST, 0
        self._counts_2N = np.zeros((2, 0), dtype=np.int64)

    def add(self, values: torch.Tensor, selected: torch.Tensor) -> None:
        """Add ``values``; ``selected`` is a mask of the same shape."""
        values_N = values.detach().double().cpu().numpy().ravel()
        selected_N = selected.cpu().numpy().ravel()
        finite_N = np.isfinite(values_N)
        values_N, selected_N = values_N[finite_N], selected_N[finite_N]
        if not len(values_N):
            return
        low, high = float(values_N.min()), float(values_N.max())
        first, last, exponent = self._fitting(low, high)
        counts_2N = np.zeros((2, last - first + 1), dtype=np.int64)
        width = self._counts_2N.shape[1]
        bin_N = (np.arange(width) + self._first >> exponent - self._exponent) - first
        for row_N, old_N in zip(counts_2N, self._counts_2N, strict=True):
            np.add.at(row_N, bin_N, old_N)
        bin_N = np.floor(values_N / 2.0**exponent).astype(np.int64) - first
        for row_N, of_N in zip(counts_2N, (bin_N, bin_N[selected_N]), strict=True):
            row_N += np.bincount(of_N, minlength=len(row_N))
        self._counts_2N, self._first, self._exponent = counts_2N, first, exponent

    def as_dict(self) -> dict[str, Any] | None:
        """The format of `modbench.report.routing`; None without numbers."""
        if not self._counts_2N.size:
            return None
        every, selected = self._counts_2N.tolist()
        edges = {"exponent": self._exponent, "first": self._first}
        return {**edges, "all": every, "selected": selected}

    def _fitting(self, low: float, high: float) -> tuple[int, int, int]:
        """First and last bin and the exponent of their width, for old counts and [low, high]."""
        exponent = self._exponent
        while True:
            first, last = floor(low / 2.0**exponent), floor(high / 2.0**exponent)
            if self._counts_2N.size:
                shift = exponent - self._exponent
                first = min(first, self._first >> shift)
                last = max(last, self._first + self._counts_2N.shape[1] - 1 >> shift)
            if last - first < WEIGHT_BINS:
                return first, last, exponent
            exponent += 1


class _Rule:
    """Counts of one selection rule."""

    def __init__(self, vocabulary: int) -> None:
        self.windows = 0
        self.seen_V = np.zeros(vocabulary, dtype=np.int64)
        self.routed_V = np.zeros(vocabulary, dtype=np.int64)
        self.entered_N = np.zeros(0, dtype=np.int64)
        self.routed_T: dict[int, np.ndarray] = {}
        self.gates: dict[int, Weights] = {}
        self.load_E: dict[int, np.ndarray] = {}
        self.scores: dict[int, Weights] = {}
        self.taken_T: dict[int, np.ndarray] = {}
        self.by_taken: dict[int, np.ndarray] = {}
        self.by_no_op: dict[int, np.ndarray] = {}

    def see(self, tokens_BT: torch.Tensor, trace: Trace) -> None:
        """Add one forward pass of ``tokens_BT`` without padding."""
        self.windows += len(tokens_BT)
        tokens_N = tokens_BT.cpu().numpy().ravel()
        self.seen_V += np.bincount(tokens_N, minlength=len(self.seen_V))
        times_BT = np.zeros(tokens_BT.shape, dtype=np.int64)
        layers = 0
        for (layer, name), shown in trace.tensors.items():
            # A plugin may show selections of another shape, which are ignored.
            if name == "selected" and shown.shape == tokens_BT.shape:
                layers += 1
                entered_BT = shown.bool().cpu().numpy()
                times_BT += entered_BT
                self.routed_T[layer] = self.routed_T.get(layer, 0) + entered_BT.sum(0)
                gate = trace.tensors.get((layer, "gate"))
                if gate is not None and gate.shape == shown.shape:
                    self.gates.setdefault(layer, Weights()).add(gate, shown.bool())
            elif name == "load" and shown.dim() == 1:
                load_E = shown.double().nan_to_num(0, 0, 0).clamp(min=0).round().long().cpu().numpy()
                self.load_E[layer] = self.load_E.get(layer, 0) + load_E
            elif name == "taken" and shown.numel() == tokens_BT.numel():
                taken_BT = shown.view_as(tokens_BT).cpu().numpy()
                self.taken_T[layer] = self.taken_T.get(layer, 0) + (taken_BT > 0).sum(0)
                _count(self.by_taken, layer, taken_BT)
            elif name == "no_op" and shown.numel() == tokens_BT.numel():
                _count(self.by_no_op, layer, shown.cpu().numpy())
            elif name == "scores":
                chosen = trace.tensors.get((layer, "chosen"))
                if chosen is not None and chosen.shape == shown.shape:
                    self.scores.setdefault(layer, Weights()).add(shown, chosen)
        times_N = times_BT.ravel()
        for times in range(1, layers + 1):
            entered_V = np.bincount(tokens_N[times_N == times], minlength=len(self.seen_V))
            self.routed_V += times * entered_V
        self.entered_N = _with(self.entered_N, times_N, layers)

    def as_dict(self, edges: Sequence[int], ids: Sequence[int]) -> dict[str, Any]:
        def weights(of: dict[int, Weights], layer: int) -> dict[str, Any] | None:
            return of[layer].as_dict() if layer in of else None

        return {
            "depth": [
                {
                    "layer": layer,
                    "routed": np.add.reduceat(self.routed_T[layer], edges[:-1]).tolist(),
                    "gates": weights(self.gates, layer),
                }
                for layer in sorted(self.routed_T)
            ],
            "entered": np.pad(
                self.entered_N, (0, len(self.routed_T) + 1 - len(self.entered_N))
            ).tolist(),
            "routed": self.routed_V[list(ids)].tolist(),
            "experts": [
                {
                    "layer": layer,
                    "load": self.load_E[layer].tolist(),
                    "scores": weights(self.scores, layer),
                    **self._choices(layer, edges),
                }
                for layer in sorted(self.load_E)
            ],
        }

    def _choices(self, layer: int, edges: Sequence[int]) -> dict[str, list[int]]:
        """Counts of layers in which experts choose tokens, or some experts are no-ops."""
        found = {}
        if layer in self.taken_T:
            found["taken"] = np.add.reduceat(self.taken_T[layer], edges[:-1]).tolist()
            found["by_taken"] = self.by_taken[layer].tolist()
        if layer in self.by_no_op:
            found["by_no_op"] = self.by_no_op[layer].tolist()
        return found


def _with(counts_N: np.ndarray, numbers: np.ndarray, most: int = 0) -> np.ndarray:
    """Add ``numbers`` to ``counts_N`` of 0, 1, ...; the result reaches at least ``most``."""
    total_N = np.bincount(numbers.ravel(), minlength=max(most + 1, len(counts_N)))
    total_N[: len(counts_N)] += counts_N
    return total_N


def _count(into: dict[int, np.ndarray], layer: int, numbers: np.ndarray) -> None:
    into[layer] = _with(into.get(layer, np.zeros(0, dtype=np.int64)), numbers)


class RoutingHistograms:
    """Histograms over held-out windows of ``sequence`` tokens, the same windows for each rule.
    ``pieces``: bytes of each token id."""

    def __init__(self, *, sequence: int, pieces: Sequence[bytes]) -> None:
        self._pieces, self._sequence = pieces, sequence
        self._rules = {rule: _Rule(len(pieces)) for rule in ("causal", "topk")}

    def watch(self, rule: Selection) -> Callable[[torch.Tensor, Trace], None]:
        """The ``watch`` callback for `modbench.measure.loss.heldout_loss`."""
        return self._rules[rule].see

    def as_dict(self) -> dict[str, Any]:
        """The record's format, see `modbench.report.routing`; {} if nothing is routed."""
        rules = self._rules.values()
        routed = any(rule.routed_T for rule in rules)
        if not routed and not any(rule.load_E for rule in rules):
            return {}
        causal = self._rules["causal"]
        each = -(-self._sequence // POSITION_BINS)
        edges = [*range(0, self._sequence, each), self._sequence]
        ids: list[int] = []
        if routed:
            order_V = np.argsort(-causal.seen_V, kind="stable")[:KEPT_IDS]
            ids = [int(name) for name in order_V if causal.seen_V[name]]
        return {
            "windows": causal.windows,
            "sequence": self._sequence,
            "edges": edges,
            "ids": ids,
            "texts": [self._pieces[name].decode("utf-8", "backslashreplace") for name in ids],
            "seen": causal.seen_V[ids].tolist(),
            **{name: rule.as_dict(edges, ids) for name, rule in self._rules.items()},
        }
