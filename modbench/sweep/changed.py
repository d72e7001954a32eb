"""Finds records in a results folder that a suite, which was changed since, would not make. Imports no
torch."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from modbench.errors import UserError, several
from modbench.records.finished import Finished
from modbench.records.result import Result, results_of
from modbench.records.run import Run
from modbench.records.store import read_suite
from modbench.sweep.rows import Rows
from modbench.sweep.wanted import Wanted, expand_planned

Settings = dict[str, Any]
_ABSENT = object()


def check_unchanged(
    rows: Rows,
    wanted: Sequence[Wanted],
    records: Sequence[Finished],
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    """Name the finished runs in ``folder`` (results/<suite>) that are none of the suite's ``wanted``:
    those of other rows, and those of its rows with other settings. Raises UserError: a suite with
    isoFLOP grids has other settings now, since a curve must not hold both."""
    _check_plan(rows, records, folder)
    wanted_keys = {item.run.key for item in wanted}
    recorded_keys = {record.key for record in records if record.kind == "run" and record.status == "ok"}
    if recorded_keys <= wanted_keys:
        return
    labels = [scheme.label for scheme in rows.suite.schemes]
    others = [result for result in results_of(read_suite(folder)) if result.key not in wanted_keys]
    others = [result for result in others if result.status == "ok"]
    if names := sorted({result.scheme for result in others} - set(labels)):
        tell(f"{folder} also holds records of {', '.join(names)}; the report shows them, too")
    isoflop = rows.suite.isoflop is not None
    mine = [result for result in others if result.scheme in labels]
    mine.sort(key=lambda result: (labels.index(result.scheme), result.budget))
    differ = list(_differences([*wanted, *expand_planned(rows)], mine, isoflop))
    if not differ:
        return
    more = f", and {len(differ) - 1} more" if len(differ) > 1 else ""
    message = f"{folder} holds runs with other settings than the suite has now: {differ[0]}{more}"
    if isoflop:
        raise UserError(
            f"{message}; a curve must not hold both: give that scheme another label, give --results "
            "another folder, or restore the suite"
        )
    tell(f"{message}; the report shows them as rows of their own")


def _check_plan(rows: Rows, records: Sequence[Finished], folder: Path) -> None:
    """Raises UserError: finished runs state another exponent or margin than ``rows`` has."""
    isoflop = rows.suite.isoflop
    has_runs = any(record.kind == "run" and record.status == "ok" for record in records)
    if isoflop is None or not has_runs:
        return
    margins = {record.margin for record in records if record.margin is not None}
    settings = [("margin", margins, isoflop.margin, "a margin chosen after the results proves nothing")]
    for depth in isoflop.layers or (None,):
        laws = {law for record in records for of, law in record.exponents if of == depth}
        name = "exponent" if depth is None else f"exponent at {several(depth, 'layer')}"
        settings.append((name, laws, isoflop.of_depth(depth).exponent, "a curve must not hold both"))
    for name, stated, now, why in settings:
        if others := stated - {now}:
            raise UserError(
                f"{folder} holds runs with [isoflop] {name} {min(others):g} (now {now:g}); {why}: give "
                "--results another folder, or restore the suite"
            )


def _differences(wanted: Iterable[Wanted], recorded: Iterable[Result], isoflop: bool) -> Iterable[str]:
    """A phrase for each setting of ``recorded`` runs that none of ``wanted`` of its scheme has: where it
    differs from the closest one. Seeds, and learning rates of isoFLOP suites, may differ."""
    now: dict[str, list[Settings]] = {}
    for item in wanted:
        settings = _settings(item.run, isoflop)
        of_scheme = now.setdefault(item.scheme, [])
        if settings not in of_scheme:
            of_scheme.append(settings)
    seen: list[tuple[str, Settings]] = []
    for result in recorded:
        settings = _settings(result.run, isoflop)
        if result.scheme not in now or settings in now[result.scheme]:
            continue
        if (result.label, settings) in seen:
            continue
        seen.append((result.label, settings))
        closest = min((_between(settings, other) for other in now[result.scheme]), key=len)
        name, (before, after) = next(iter(closest.items()))
        yield f"'{result.label}' with {name} {_shown(before)} (now {_shown(after)})"


def _settings(run: Run, isoflop: bool) -> Settings:
    """The settings of ``run`` by dotted name, without its seed."""
    stated = run.as_json()
    parts = {"train": stated["train"], "schedule": stated["schedule"], "model": stated["model"]}
    parts |= {"data": stated["data"], "router": stated["router"]}
    settings = {
        f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()
    }
    options = settings.pop("router.options")
    settings |= {f"router.options.{name}": value for name, value in options.items()}
    free = {"train.learning_rate"} if isoflop else set()
    return {name: value for name, value in settings.items() if name not in free}


def _between(settings: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, with both values."""
    names = dict.fromkeys([*settings, *other])
    pairs = {name: (settings.get(name, _ABSENT), other.get(name, _ABSENT)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return value[:12] if isinstance(value, str) else str(value)
