"""Data of the chart whose axes can be chosen."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib.colors import to_hex
from matplotlib.markers import MarkerStyle

from modbench.records.metrics import METRICS
from modbench.report.html.source import SuiteReport
from modbench.report.leaderboard.board import comparison_titles
from modbench.report.leaderboard.rows import Row, center
from modbench.report.plot_style import Mark
from modbench.report.table import escaped

#: Costs that a chart can have on its horizontal axis, with their names there.
COSTS = {
    "forward_flops_per_token_realised": "realised forward FLOPs per token",
    "forward_flops_per_token": "nominal forward FLOPs per token",
    "train_flops": "training budget (FLOPs)",
    "train_step_seconds": "seconds per training step",
    "forward_seconds": "seconds per forward pass",
    "peak_memory_bytes": "peak memory of training (bytes)",
    "active_parameters": "active parameters",
    "parameters": "all parameters",
    "kv_cache_bytes_per_token": "KV cache (bytes per token)",
    "train_tokens": "training tokens",
}
_TIMED = ("train_step_seconds", "peak_memory_bytes")


@dataclass(frozen=True)
class Chart:
    """The rows of a suite as points."""

    report: SuiteReport

    @cached_property
    def qualities(self) -> dict[str, str]:
        """Names of the vertical axes by metric: validation loss, then others that any row has."""
        names = [name for name, of in METRICS.items() if of.kind == "quality" and of.direction != "none"]
        held = [name for name in names if name not in COSTS and self._varies(name)]
        words = {name: name.replace("heldout", "validation").replace("_", " ") for name in held}
        return {name: f"{words[name]} ({METRICS[name].unit})" for name in held}

    @cached_property
    def costs(self) -> dict[str, str]:
        """Names of the horizontal axes by metric."""
        return {name: text for name, text in COSTS.items() if self._varies(name)}

    def _varies(self, name: str) -> bool:
        return len({self.value(row, name) for row in self.report.rows} - {None}) > 1

    @staticmethod
    def value(row: Row, name: str) -> float | None:
        """The metric ``name`` of ``row``; for training FLOPs the budget, which they reach within one
        step."""
        if name == "train_flops":
            return float(row["budget"])
        value = center(row, name)
        return None if value is None else float(f"{value:.7g}")

    def missing(self) -> list[str]:
        """Sentences on what the chart lacks."""
        if not self.qualities or not self.costs:
            return ["No chart: it needs two finished rows with a loss and a cost that differ."]
        missing = [COSTS[name] for name in _TIMED if name not in self.costs]
        if not missing:
            return []
        return [
            f"No axis for {' and '.join(missing)}: fewer than two rows were timed. "
            f"`modbench time {escaped(self.report.folder)}` measures them."
        ]

    def data(self) -> dict[str, Any] | None:
        """Axes and points, for the page's script; None without two rows to show."""
        if not self.qualities or not self.costs or self.report.compared.board is None:
            return None
        comparisons = self.report.compared.board.comparisons
        rows = self.report.rows
        schemes = list(dict.fromkeys(row["label"] for row in rows))
        axes = [*self.qualities, *self.costs]
        return {
            "y": self._axes(self.qualities),
            "x": self._axes(self.costs),
            "groups": comparison_titles(comparisons),
            "schemes": [self._scheme(scheme) for scheme in schemes],
            "points": [
                [
                    schemes.index(row["label"]),
                    row["comparison"] - 1,
                    row["_first"].label,
                    int(self._can_be_ranked(row)),
                    *(self.value(row, name) for name in axes),
                ]
                for row in rows
            ],
        }

    @staticmethod
    def _can_be_ranked(row: Row) -> bool:
        """Return True also for the sizes of isoFLOP curves."""
        return not row["_unranked"] and bool(row["_ok"])

    @staticmethod
    def _axes(names: dict[str, str]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "label": label,
                "meaning": METRICS[name].meaning,
                "lower": METRICS[name].direction != "higher",
            }
            for name, label in names.items()
        ]

    def _scheme(self, scheme: str) -> dict[str, Any]:
        look = self.report.looks.get(scheme, Mark("0.35", "o"))
        return {"name": scheme, "color": to_hex(look.color), "corners": _corners(look.marker)}


def _corners(marker: str) -> list[list[float]]:
    """The corners of matplotlib's ``marker``, downwards, with a circle's radius as 1; none: a circle."""
    if marker == "o":
        return []
    shape = MarkerStyle(marker)
    vertices: Any = shape.get_path().transformed(shape.get_transform()).vertices
    corners = (vertices[:-1] * (2, -2)).round(2) + 0.0  # without -0.0
    return [*corners.tolist()]
