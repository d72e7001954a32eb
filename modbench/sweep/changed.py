"""Finds records in a results folder that a suite, which was changed since, would not make. Imports no
torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modbench.errors import UserError
from modbench.records.store import Finished, read_suite
from modbench.sweep.cells import Cell, expand_planned, scheme_of
from modbench.sweep.rows import Rows

Settings = dict[str, Any]
_ABSENT = object()


def check_unchanged(
    rows: Rows,
    cells: Mapping[str, Cell],
    records: Sequence[Finished],
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    """Name the finished runs in ``folder`` (results/<suite>) that are none of the suite's ``cells``:
    those of other rows, and those of its rows with other settings. Raises UserError: a suite with
    isoFLOP grids has other settings now, since a curve must not hold both."""
    _check_plan(rows, records, folder)
    own = {one.key for one in records if one.kind == "cell" and one.status == "ok"}
    if own <= cells.keys():
        return
    labels = [scheme.label for scheme in rows.suite.schemes]
    recorded = [one.cell for one in read_suite(folder).cells if one.key in own - cells.keys()]
    if others := sorted({scheme_of(cell) for cell in recorded} - set(labels)):
        tell(f"{folder} also holds records of {', '.join(others)}; the report shows them, too")
    isoflop = rows.suite.isoflop is not None
    mine = [cell for cell in recorded if scheme_of(cell) in labels]
    mine.sort(key=lambda cell: (labels.index(scheme_of(cell)), cell["train"]["budget"]))
    differ = list(_differences([*cells.values(), *expand_planned(rows)], mine, isoflop))
    if not differ:
        return
    more = f", and {len(differ) - 1} more" if len(differ) > 1 else ""
    said = f"{folder} holds runs with other settings than the suite has now: {differ[0]}{more}"
    if isoflop:
        raise UserError(
            f"{said}; a curve must not hold both: give that scheme another label, give --results "
            "another folder, or restore the suite"
        )
    tell(f"{said}; the report shows them as rows of their own")


#: Settings of [isoflop] that hold for a whole results folder, and why.
_FIXED = {
    "exponent": "a curve must not hold both",
    "margin": "a margin chosen after the results proves nothing",
}


def _check_plan(rows: Rows, records: Sequence[Finished], folder: Path) -> None:
    """Raises UserError: finished runs state another exponent or margin than ``rows`` has."""
    for name, why in _FIXED.items() if rows.suite.isoflop else ():
        now = getattr(rows.suite.isoflop, name)
        stated = {getattr(one, name) for one in records if one.status == "ok"} - {now, None}
        if stated:
            raise UserError(
                f"{folder} holds runs with [isoflop] {name} {min(stated):g} (now {now:g}); {why}: give "
                "--results another folder, or restore the suite"
            )


def _differences(cells: Iterable[Cell], recorded: Iterable[Cell], isoflop: bool) -> Iterable[str]:
    """A phrase for each setting of ``recorded`` cells that none of ``cells`` of its scheme has: where it
    differs from the closest one. Seeds, and learning rates of isoFLOP suites, may differ."""
    now: dict[str, list[Settings]] = {}
    for cell in cells:
        settings, of_scheme = _settings(cell, isoflop), now.setdefault(scheme_of(cell), [])
        if settings not in of_scheme:
            of_scheme.append(settings)
    seen: list[tuple[str, Settings]] = []
    for cell in recorded:
        scheme, label, settings = scheme_of(cell), cell["router"]["label"], _settings(cell, isoflop)
        if scheme not in now or settings in now[scheme] or (label, settings) in seen:
            continue
        seen.append((label, settings))
        found = min((_between(settings, other) for other in now[scheme]), key=len)
        name, (before, after) = next(iter(found.items()))
        yield f"'{label}' with {name} {_shown(before)} (now {_shown(after)})"


def _settings(cell: Cell, isoflop: bool) -> Settings:
    """The settings of ``cell`` by dotted name."""
    free = {"router.label"} | ({"train.learning_rate"} if isoflop else set())
    found = {
        f"{part}.{name}": value
        for part in ("train", "model", "data", "measure", "router")
        for name, value in cell[part].items()
    }
    options = found.pop("router.options")
    found |= {f"router.options.{name}": value for name, value in options.items()}
    return {name: value for name, value in found.items() if name not in free}


def _between(settings: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, with both values."""
    names = dict.fromkeys([*settings, *other])
    pairs = {name: (settings.get(name, _ABSENT), other.get(name, _ABSENT)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return value[:12] if isinstance(value, str) else str(value)
