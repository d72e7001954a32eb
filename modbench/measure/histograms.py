"""Routing histograms on held-out text: routed tokens by position, token id and router weight, and the
load of experts. Raw counts; the report derives all else.

B sequences, T tokens, N numbers, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
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
        """The format of `modbench.report.routing`; None without numbers."""
        if not self._counts_2N.size:
            return None
        every, selected = self._counts_2N.tolist()
        return {"exponent": self._exponent, "first": self._first, "all": every, "selected": selected}


class _Rule:
    """Counts of one selection rule, by layer and name."""

    def __init__(self, vocabulary: int) -> None:
        self.windows = 0
        self.seen_V = np.zeros(vocabulary, dtype=np.int64)
        self.routed_V = np.zeros(vocabulary, dtype=np.int64)
        self.entered_N = np.zeros(1, dtype=np.int64)
        self.counts: dict[tuple[int, str], np.ndarray] = {}
        self.weights: dict[tuple[int, str], Weights] = defaultdict(Weights)

    def see(self, tokens_BT: torch.Tensor, trace: Trace) -> None:
        """Add one forward pass of ``tokens_BT`` without padding."""
        self.windows += len(tokens_BT)
        ids_N = tokens_BT.cpu().numpy().ravel()
        times_BT = torch.zeros(tokens_BT.shape, dtype=torch.int64, device=tokens_BT.device)
        for (layer, name), shown in trace.tensors.items():
            if name == "selected":
                times_BT += shown
                self._add(layer, "routed", shown.sum(0))
                gate = trace.tensors.get((layer, "gate"))
                if gate is not None:
                    self.weights[layer, "gates"].add(gate, shown)
            elif name == "load":
                self._add(layer, "load", shown.round().long())
            # In a depth-routed layer, experts see some of the tokens.
            elif name == "taken" and shown.numel() == tokens_BT.numel():
                self._add(layer, "taken", (shown.view_as(tokens_BT) > 0).sum(0))
                self._add(layer, "by_taken", shown.long().bincount())
            elif name == "no_op" and shown.numel() == tokens_BT.numel():
                self._add(layer, "by_no_op", shown.long().bincount())
            elif name == "scores":
                self.weights[layer, "scores"].add(shown, trace.tensors[layer, "chosen"])
        times_N = times_BT.cpu().numpy().ravel()
        self.seen_V += np.bincount(ids_N, minlength=len(self.seen_V))
        self.routed_V += np.bincount(ids_N, times_N, minlength=len(self.seen_V)).astype(np.int64)
        self.entered_N = _sum(self.entered_N, np.bincount(times_N))

    def layers(self, name: str) -> list[int]:
        """The layers with counts of ``name``."""
        return sorted(layer for layer, other in self.counts if other == name)

    def as_dict(self, edges: Sequence[int], ids: Sequence[int]) -> dict[str, Any]:
        depth = self.layers("routed")
        return {
            "depth": [
                {
                    "layer": layer,
                    "routed": self._by_position(layer, "routed", edges),
                    "gates": self.weights[layer, "gates"].as_dict(),
                }
                for layer in depth
            ],
            "entered": _sum(self.entered_N, np.zeros(len(depth) + 1, dtype=np.int64)).tolist(),
            "routed": self.routed_V[list(ids)].tolist(),
            "experts": [
                {
                    "layer": layer,
                    "load": self.counts[layer, "load"].tolist(),
                    "scores": self.weights[layer, "scores"].as_dict(),
                    **self._choices(layer, edges),
                }
                for layer in self.layers("load")
            ],
        }

    def _choices(self, layer: int, edges: Sequence[int]) -> dict[str, list[int]]:
        """Counts of layers in which experts choose tokens, or some experts are no-ops."""
        found = {
            name: self.counts[layer, name].tolist()
            for name in ("by_taken", "by_no_op")
            if (layer, name) in self.counts
        }
        if (layer, "taken") in self.counts:
            found["taken"] = self._by_position(layer, "taken", edges)
        return found

    def _by_position(self, layer: int, name: str, edges: Sequence[int]) -> list[int]:
        return np.add.reduceat(self.counts[layer, name], edges[:-1]).tolist()  # type: ignore[no-any-return]

    def _add(self, layer: int, name: str, counts: torch.Tensor) -> None:
        zero = np.zeros(0, dtype=np.int64)
        self.counts[layer, name] = _sum(self.counts.get((layer, name), zero), counts.cpu().numpy())


def _sum(one_N: np.ndarray, other_N: np.ndarray) -> np.ndarray:
    """Add counts; the shorter ones are filled up with zeros."""
    total_N = np.zeros(max(len(one_N), len(other_N)), dtype=np.int64)
    total_N[: len(one_N)] += one_N
    total_N[: len(other_N)] += other_N
    return total_N


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
        causal = self._rules["causal"]
        if not causal.counts:
            return {}
        each = -(-self._sequence // POSITION_BINS)
        edges = [*range(0, self._sequence, each), self._sequence]
        ids: list[int] = []
        if causal.layers("routed"):
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
