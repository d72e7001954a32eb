"""Timings of one run: schemes of each size compared to dense and to the machine's ceilings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import pandas as pd

from modbench.report.record import TimingRecord, canonical_json, cell_key
from modbench.report.timing import refuse_other_environments, refuse_other_versions
from modbench.report.timing_rows import (
    MEMORY,
    CaseRow,
    MemoryRow,
    case_rows,
    held_against,
    memory_rows,
    throttled,
)


@dataclass(frozen=True)
class Group:
    """Schemes of one size, compared to each other."""

    shape: dict[str, Any]  #: model, train, time
    timings: tuple[TimingRecord, ...]

    @cached_property
    def name(self) -> str:
        """The common suffix of all labels after a slash (suites of several sizes); else empty."""
        ends = {label.rpartition("/")[2] if "/" in label else "" for label in self._by_label}
        return ends.pop() if len(ends) == 1 else ""

    @cached_property
    def _by_label(self) -> dict[str, list[TimingRecord]]:
        found: dict[str, list[TimingRecord]] = {}
        for timing in self.timings:
            router = timing.cell["router"]
            if router is not None:
                found.setdefault(router["label"], []).append(timing)
        return dict(sorted(found.items()))

    @cached_property
    def failed_ceilings(self) -> list[TimingRecord]:
        return [t for t in self.timings if t.measurement == "ceiling" and t.status != "ok"]

    @cached_property
    def throttled_ceilings(self) -> list[TimingRecord]:
        return [
            t for t in self.timings if t.measurement == "ceiling" and throttled(t.measured.get("gpu"))
        ]

    @cached_property
    def usable_ceilings(self) -> list[TimingRecord]:
        unusable = [*self.failed_ceilings, *self.throttled_ceilings]
        return [t for t in self.timings if t.measurement == "ceiling" and t not in unusable]

    @cached_property
    def ceilings(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The fastest matmul of each dtype and component."""
        gemms = [gemm for timing in self.usable_ceilings for gemm in timing.measured["gemm"]]
        gemms.sort(key=lambda gemm: (gemm["dtype"], gemm["component"], gemm["flops_per_second"]))
        return {(gemm["dtype"], gemm["component"]): gemm for gemm in gemms}

    @property
    def copy_bytes_per_second(self) -> float | None:
        return max((t.measured["copy_bytes_per_second"] for t in self.usable_ceilings), default=None)

    def ceiling(self, dtype: str) -> float | None:
        return max(
            (gemm["flops_per_second"] for (kind, _), gemm in self.ceilings.items() if kind == dtype),
            default=None,
        )

    @cached_property
    def cases(self) -> tuple[CaseRow, ...]:
        """Rows by label; cases in the order of timing."""
        rows: list[CaseRow] = []
        for timings in self._by_label.values():
            rows += case_rows([t for t in timings if t.measurement == "time"], self.ceiling)
        dense = self._dense(rows)
        return tuple(held_against(row, dense.get(row.case)) for row in rows)

    def _dense(self, rows: Sequence[CaseRow]) -> dict[str, CaseRow]:
        """Cases of the first vanilla row with a valid time."""
        valid = [
            row for row in rows if row.router == "vanilla" and row.is_timed and row.status != "invalid"
        ]
        return {row.case: row for row in valid if row.label == valid[0].label}

    @cached_property
    def memory(self) -> tuple[MemoryRow, ...]:
        return tuple(
            row
            for timings in self._by_label.values()
            for timing in timings
            if timing.measurement in MEMORY
            for row in memory_rows(timing)
        )


@dataclass(frozen=True)
class TimingTable:
    """All timings of one run."""

    groups: tuple[Group, ...]
    timings: tuple[TimingRecord, ...]

    @classmethod
    def of(cls, timings: Iterable[TimingRecord]) -> "TimingTable":
        """
        Raises:
            UserError: machines or settings differ, or two schemes share a label.
        """
        timings = tuple(timings)
        refuse_other_environments(timings)
        refuse_other_versions(timings)
        groups: dict[str, list[TimingRecord]] = {}
        for timing in timings:
            groups.setdefault(cell_key({**timing.cell, "router": None}), []).append(timing)
        ordered = sorted(groups.values(), key=lambda group: canonical_json(group[0].cell["model"]))
        return cls(
            tuple(
                Group({k: v for k, v in group[0].cell.items() if k != "router"}, tuple(group))
                for group in ordered
            ),
            timings,
        )

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """Unique name of each group; empty if there is only one."""
        if len(self.groups) == 1:
            return ("",)
        names = [group.name for group in self.groups]
        titles: list[str] = []
        for name, group in zip(names, self.groups, strict=True):
            train = group.shape["train"]
            if names.count(name) > 1:  # schemes with other training settings
                size = f"{train['batch']} x {train['sequence']} tokens, {train['precision']}"
                name = ", ".join(filter(None, (name, size)))
            name = name or f"Shape {len(titles) + 1}"
            titles.append(name if name not in titles else f"{name}, {len(titles) + 1}")
        return tuple(titles)

    def csv(self) -> str:
        """All cases at full precision; the columns are those of `CaseRow`."""
        return _csv(CaseRow, [row for group in self.groups for row in group.cases])

    def memory_csv(self) -> str:
        """All parts in bytes; the columns are those of `MemoryRow`."""
        return _csv(MemoryRow, [row for group in self.groups for row in group.memory])


def _csv(kind: type, rows: Sequence[Any]) -> str:
    # object: integers stay integers in a column with missing values.
    frame = pd.DataFrame(rows, columns=[field.name for field in fields(kind)], dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")
