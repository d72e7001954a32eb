"""A sweep besides its runs: planning, recognising what is finished, starting processes; and the
throughput of two runs at a time."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from interleaved import now
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach

from modbench.records.line import canonical_json, key_of
from modbench.records.store import read_suite
from modbench.report.write import Report
from modbench.sweep import command, run
from modbench.sweep.job import Job
from modbench.sweep.loop import Failure, Loop
from modbench.sweep.request import RunRequest
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Suite, parse_suite
from modbench.sweep.wanted import expand_planned

RUNS = 10_000
COMMITTED = Path(__file__).parents[2] / "results" / "quick" / "records"
SCHEMES = ("vanilla", "token_choice", "expert_choice", "mod", "mode_staged")
GRID: dict[str, Any] = {
    "suite": {"name": "many"},
    "model": {"layers": 4, "heads": 2},
    "sweep": {"budgets": [10**13, 2 * 10**13, 4 * 10**13, 8 * 10**13, 10**14], "seeds": range(40)},
    "shapes": [{"label": f"w{width}", "width": width} for width in range(16, 96, 8)],
    "measure": {"steps": ["audit", "train", "heldout"]},
    "schemes": [{"router": router} for router in SCHEMES],
}
ISOFLOP: dict[str, Any] = {
    **{name: table for name, table in GRID.items() if name != "shapes"},
    "data": {"tokenizer": "bytes"},
    "isoflop": {"width_step": 4},
    "sweep": {"budgets": [3 * 10**12, 10**13, 3 * 10**13], "seeds": range(398)},
}
#: The runs of a sweep that is run: about a third of the mean run of the suite isoflop-cpu.
TRAINED = """
[suite]
name = "{name}"
[model]
width = 64
layers = 4
heads = 2
[data]
source = "text"
path = "text.txt"
tokenizer = "bytes"
[train]
batch = 4
precision = "float32"
[measure]
steps = ["train", "heldout"]
[sweep]
budgets = [4e12]
seeds = {seeds}
[[schemes]]
router = "vanilla"
"""


def suite_of(tables: dict[str, Any]) -> Suite:
    return parse_suite(json.loads(json.dumps({**tables, "sweep": _listed(tables["sweep"])})), "made up")


def _listed(table: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) for name, value in table.items()}


@pytest.mark.parametrize("tables", [GRID, ISOFLOP], ids=["grid", "isoflop"])
def test_planning(tables: dict[str, Any], benchmark: BenchmarkFixture, reach: Reach) -> None:
    suite, spent = suite_of(tables), time.process_time()

    def plan() -> int:
        return len(expand_planned(resolve(suite)))

    runs = benchmark.pedantic(plan, rounds=3, warmup_rounds=1, iterations=1)
    assert abs(runs - RUNS) < RUNS / 100
    what = f"planning {runs:,} runs, {'isoFLOP grids' if suite.isoflop else 'a grid'}"
    reach(what, benchmark.stats.stats.median, 2, "s")
    reach.shown(f"{what}, processor time", (time.process_time() - spent) / 4, "s")


@pytest.mark.parametrize("tables", [GRID, ISOFLOP], ids=["grid", "isoflop"])
def test_finished_sweep(
    tables: dict[str, Any],
    benchmark: BenchmarkFixture,
    reach: Reach,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = suite_of(tables)
    folder = tmp_path / suite.header.name
    finish(suite, folder)
    monkeypatch.setattr(run, "load_suite", lambda name, settings: suite)
    # The report comes after.
    monkeypatch.setattr("modbench.report.write.write_report", lambda *given, **named: Report([], {}))
    spent = time.process_time()

    def recognise() -> int:
        return run.run_suite(RunRequest(name="many", results=tmp_path))

    assert benchmark.pedantic(recognise, rounds=3, warmup_rounds=1, iterations=1) == 0
    what = f"recognising {RUNS:,} finished runs, {'isoFLOP grids' if suite.isoflop else 'a grid'}"
    reach(what, benchmark.stats.stats.median, 3, "s")
    reach.shown(f"{what}, processor time", (time.process_time() - spent) / 4, "s")


def finish(suite: Suite, folder: Path) -> None:
    """Store a record of each run of ``suite``: as large as committed ones, and valid lines."""
    lines = [line for file in COMMITTED.glob("*.jsonl") for line in file.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    audits = {one["key"]: one for one in found if one["kind"] == "audit"}
    template = next(one for one in found if one["kind"] == "run" and one["audit_key"] in audits)
    heldout = next(one for one in found if one["kind"] == "measurement")
    (folder / "records").mkdir(parents=True)
    records = [audits[template["audit_key"]]]
    rows = resolve(suite)
    settings = dict(suite.measure.wanted())["heldout"]
    for wanted in expand_planned(rows):
        run = wanted.run
        ends = [template["ends"][0] | {"budget": budget} for budget in run.schedule.budgets]
        stated = {"run": run.as_json(), "key": run.key, "ends": ends, "digest": ""}
        records.append(template | stated)
        # The middle learning rate is best.
        loss = 3.0 + abs(run.train.learning_rate - 5e-3)
        subject = {"run": run.key, "budget": wanted.budget, "measures": "heldout"}
        subject["settings"] = settings
        result = heldout["result"] | {"metrics": heldout["result"]["metrics"] | {"heldout_loss": loss}}
        measured = {"measurement": subject, "key": key_of(subject), "result": result, "digest": ""}
        records.append(heldout | measured)
    for number, record in enumerate(records):
        digest = record["digest"] or hashlib.sha256(canonical_json(record).encode()).hexdigest()
        line = canonical_json(record | {"digest": digest})
        (folder / "records" / f"{number:016x}.jsonl").write_text(f"{line}\n")


class _Clocked(Loop):
    """Notes the wall time of its runs."""

    wall = 0.0

    def run(self, jobs: list[Job]) -> list[Failure]:  # type: ignore[override]
        start = now()
        failures = super().run(jobs)
        type(self).wall = now() - start
        return failures


def test_runs_at_a_time(
    benchmark: BenchmarkFixture, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Loop", _Clocked)
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(f"one line and another, {n}." for n in range(200_000)))

    def swept(name: str, seeds: list[int]) -> tuple[list[dict[str, float]], float]:
        """Run a run per seed, all at a time; return the seconds of their steps, and the wall time."""
        Path(f"{name}.toml").write_text(TRAINED.format(name=name, seeds=seeds))
        request = RunRequest(name=f"{name}.toml", results=tmp_path, workers=len(seeds))
        assert run.run_suite(request) == 0
        records = read_suite(tmp_path / name)
        measured = {record.measurement.run: record for record in records.measurements}
        seconds = [{**(r.seconds or {}), **(measured[r.key].seconds or {})} for r in records.runs]
        return seconds, _Clocked.wall

    (alone,), wall = benchmark.pedantic(swept, args=("one", [0]), rounds=1, iterations=1)
    both, _ = swept("two", [0, 1])
    rate = sum(alone["train"] / other["train"] for other in both)
    reach.at_least("two single-thread runs at a time, of one's throughput", rate, 1.9, "x")
    own = sum(seconds for step, seconds in alone.items() if step not in ("start", "waiting"))
    reach("a sweep besides its runs, of the wall time", 100 * (1 - own / wall), 2, "%")
    reach.shown("start of a run's process, of the wall time", 100 * alone["start"] / wall, "%")
