"""Formats plans of suites as text for a terminal, and as one JSON document."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from modbench.errors import several
from modbench.plan.units import shown
from modbench.records.names import at_depth
from modbench.report.table import Table
from modbench.sweep.plan import Part, SuitePlan
from modbench.sweep.progress import clock

_HEADS = ("scheme", "budget", "sizes", "runs", "FLOPs", "tokens", "passes", "time")


def as_table(plan: SuitePlan) -> str:
    """A row per scheme and budget; the totals; what the figures are, and what was measured."""
    columns = len(_HEADS) if plan.speeds else len(_HEADS) - 1  # no time without a measurement
    rows = [_row(part)[:columns] for part in plan.parts]
    table = Table(_HEADS[:columns], rows, left=(0, 2)).to_text()
    total = f"{several(plan.runs, 'run', ',')}, {plan.flops:.3g} FLOPs"
    if plan.speeds:
        total += f", {_clock(plan.seconds)} with {several(plan.at_a_time, 'run')} at a time"
    parts = [f"{plan.suite.header.name}: {total}", table, "\n".join(_notes(plan))]
    if plan.speeds:
        parts.append("\n".join(_measured(plan)))
    return "\n\n".join(parts)


def _row(part: Part) -> tuple[str, ...]:
    return (
        at_depth(part.scheme, part.depth),
        f"{part.budget:.3g}",
        " ".join(f"{width}x{layers}" for width, layers in part.sizes),
        f"{part.runs:,}",
        f"{part.flops:.3g}",
        shown(part.tokens),
        "-" if part.passes is None else f"{part.passes:.2f}",
        _clock(part.seconds),
    )


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else clock(seconds)


def _notes(plan: SuitePlan) -> Iterator[str]:
    suite = plan.suite
    yield from plan.added.values()
    yield "sizes: width x layers"
    if suite.isoflop is not None:
        more = suite.isoflop.extensions
        yield (
            "runs: as if the middle learning rate is best: its trials, all sizes, and the check of its "
            f"law; a best rate at an end of the list adds up to {more} to a scheme"
        )
        if len(suite.axes.seeds) == 1:
            yield (
                "seeds: one, so the report will have no intervals, ranks or differences; give two or "
                "more in [sweep] seeds"
            )
    yield "FLOPs: convention model, nominal routing, whole training steps"
    if plan.train_tokens is None:
        yield (
            f"passes: unknown, since text '{suite.data.source}' is not prepared; to prepare it, run "
            "`modbench data prepare` with the settings of [data]"
        )
    else:
        most = "" if suite.isoflop is None else f"; at most {suite.isoflop.passes:g} ([isoflop] passes)"
        yield (
            f"tokens and passes: of the size that reads most; the training text has "
            f"{several(plan.train_tokens, 'token', ',')}{most}"
        )
    if plan.speeds:
        yield (
            "time: training steps only, without start, audit and evaluation; in the table one run "
            "after another"
        )
        if any(part.seconds is None for part in plan.parts):
            yield "-: a size lies outside those that were timed"
        if plan.busy:
            yield "other work took part of this machine while steps were timed: times are too long"


def _measured(plan: SuitePlan) -> Iterator[str]:
    threads = several(plan.threads, "thread")
    yield f"FLOP/s of training steps, measured with {threads}, and interpolated between these sizes:"
    rows = []
    for scheme, speed in plan.speeds.items():
        steps = (f"{step.width}x{step.layers} {step.rate:.3g}" for step in speed.steps)
        rows.append((scheme, "; ".join([*steps, *speed.missing])))
    yield Table((), rows).to_text()


def as_json(plan: SuitePlan) -> str:
    """One JSON document, on one line."""
    speeds: dict[str, Any] = {}
    for scheme, speed in plan.speeds.items():
        steps = [asdict(step) | {"flops_per_second": step.rate} for step in speed.steps]
        speeds[scheme] = {"steps": steps, "missing": list(speed.missing)}
    isoflop = plan.suite.isoflop
    document = {
        "suite": plan.suite.header.name,
        "isoflop": isoflop is not None,
        "runs": plan.runs,
        "flops": plan.flops,
        "seconds": plan.seconds,
        "runs_at_a_time": plan.at_a_time,
        "threads": plan.threads,
        "train_tokens": plan.train_tokens,
        "most_passes": None if isoflop is None else isoflop.passes,
        "parts": [asdict(part) | {"sizes": _sizes(part)} for part in plan.parts],
        "measured": speeds,
        "busy": plan.busy,
        "added": plan.added,
    }
    return json.dumps(document)


def _sizes(part: Part) -> list[dict[str, int]]:
    return [{"width": width, "layers": layers} for width, layers in part.sizes]
