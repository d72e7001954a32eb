"""Records with plainly made-up figures; no test here measures anything."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from isoflop_made_up import PLAN, Make

from modbench.records.line import Record, key_of
from modbench.records.record import AnyRecord, MeasurementRecord, RunRecord, SuiteRecord
from modbench.records.result import Result

FLOPS_PER_TOKEN = 3_000_000
BUDGET = 1_000_000_000_000
SUITE: dict[str, Any] = {
    "name": "fake",
    "version": 1,
    "compare": (),
    "left": 0,
    "wanted": 0,
    "finished": "2026-01-01T00:20:00+00:00",  #: of its record
    "rank": (0, "2026-01-01T00:20:00+00:00", ""),
}
#: Metrics of training, of its end, and of the task.
COSTS = (
    "train_flops_per_token",
    "forward_flops_per_token",
    "forward_flops_per_token_full",
    "parameters",
    "active_parameters",
)
SPENT = ("train_steps", "train_tokens", "train_flops", "train_flops_nominal")


def make_record(
    label: str = "vanilla",
    *,
    router: str | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    loss: float = 5.0,
    cost: float = 1.0,
    status: str = "ok",
    failed_probes: tuple[int, ...] = (),
    metrics: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    measure: dict[str, Any] | None = None,
    finished: str = "2026-01-01T00:10:00+00:00",
    suite: dict[str, Any] | None = None,
    routing: dict[str, Any] | None = None,
    layers: list[dict[str, Any]] | None = None,
    downstream: dict[str, Any] | None = None,
    **fields: Any,
) -> Result:
    """The result of a run of ``label``; ``cost`` scales its FLOPs against a dense model's 1.
    ``metrics``: None leaves one out. ``fields``: of its run's record; ``audit``: of its end."""
    train = dict(train or {})
    budget = train.pop("budget", BUDGET)
    schedule = {"kind": "cosine", "budgets": [budget], "warmup": 0.1, "final_learning_rate": 0.1}
    run = {
        "router": {
            "name": router or label.partition("/")[0],
            "options": options or {},
            "plugin_sha256": fields.pop("plugin_sha256", None),
        },
        "model": {"vocabulary": 2048, "width": 128, "layers": 4, **(model or {})},
        "data": {"source": "pypi-en-v1", "tokenizer": "bpe"},
        "train": {"sequence": 256, "batch": 8, **train},
        "schedule": schedule,
        "seed": seed,
    }
    names = {1: "causal", 2: "batch", 3: "parity", 5: "bypass", 9: "count"}
    flops = round(FLOPS_PER_TOKEN * cost)
    steps = 10**12 // (3 * flops * 2048)
    measured = {
        "heldout_loss": loss,
        "heldout_bits_per_byte": loss / 2.5,
        "heldout_loss_leaky": loss - 0.02,
        "leak": 0.02,
        "unigram_loss": 6.25,
        "train_steps": steps,
        "train_tokens": steps * 2048,
        "train_flops_nominal": steps * 3 * flops * 2048,
        "train_flops": steps * 3 * flops * 2048,
        "train_flops_per_token": 3 * flops,
        "forward_flops_per_token": flops,
        "forward_flops_per_token_full": flops + 100_000,
        "forward_flops_per_token_realised": flops * 1.01,
        "forward_flops_per_token_dispatched": flops * 1.02,
        "kv_cache_bytes_per_token": 2250.4,
        "kv_cache_share": 0.5624,
        "parameters": 1_200_000,
        "active_parameters": 1_000_000,
        "modbench_cloze": 0.4,
        "modbench_cloze_untrained": 0.26,
        "modbench_cloze_chance": 0.25,
    }
    curve = [
        {
            "step": step,
            "flops": step * 3 * flops * 2048,
            "tokens": step * 2048,
            "train_loss": loss + 8 / (step + 4),
            "heldout_loss": loss + 9 / (step + 4),
        }
        for step in range(0, steps + 1, max(steps // 8, 1))
    ]
    figures = {**(measured if status == "ok" else {}), **(metrics or {})}
    figures = {name: value for name, value in figures.items() if value is not None}
    findings = [
        {
            "probe": number,
            "name": name,
            "verdict": "failed" if number in failed_probes else "passed",
            "figure": "moved by 0.7" if number in failed_probes else "0",
            "ranks": number != 5,
        }
        for number, name in names.items()
    ]
    end = {name.removeprefix("train_"): figures[name] for name in SPENT if name in figures}
    end |= {"budget": budget, "audit": fields.pop("audit", findings)}
    made = {
        "code": {"version": "0.1.0", "commit": "0" * 40, "dirty": False},
        "environment": {
            "cpu": "Imaginary CPU",
            "gpu": None,
            "cores": 2,
            "threads": 2,
            "torch": "2.13.0",
            **(environment or {}),
        },
        "started": "2026-01-01T00:00:00+00:00",
        "finished": finished,
    }
    arguments: dict[str, Any] = {
        "run": run,
        "key": key_of(run),
        "data": {
            "sha256": "ab" * 32,
            "train_tokens": 4_000_000,
            "heldout_tokens": 200_000,
            **(data or {}),
        },
        "metrics": {name: value for name, value in figures.items() if name in COSTS},
        "ends": [end] if status == "ok" else [],
        "curve": curve if status == "ok" else [],
        "status": status,
        "error": None if status == "ok" else "the loss is not finite at step 7",
        **made,
    }
    record = RunRecord.made(**{**arguments, **fields})

    def measurement(kind: str, settings: dict[str, Any], result: dict[str, Any]) -> MeasurementRecord:
        subject = {"run": record.key, "budget": budget, "measures": kind, "settings": settings}
        outcome = {"status": "ok", "error": None}
        return MeasurementRecord.made(
            measurement=subject, key=key_of(subject), result=result, **outcome, **made
        )

    asked = {"heldout_tokens": 65_536, "downstream": ("modbench_cloze",), **(measure or {})}
    of_cloze = {name: value for name, value in figures.items() if name.startswith("modbench_cloze")}
    heldout = {n: v for n, v in figures.items() if n not in (*COSTS, *SPENT, *of_cloze)}
    parts = {"routing": routing, "layers": layers}
    of_heldout = {"metrics": heldout} | {name: part for name, part in parts.items() if part}
    settings = {"heldout_tokens": asked["heldout_tokens"], "curve_tokens": 4096}
    measurements = [measurement("heldout", settings, of_heldout)] if heldout or routing else []
    tasks: dict[str, Any] = {}
    further = {
        name: asked[f"downstream_{name}"]
        for name in ("limit", "fewshot")
        if asked.get(f"downstream_{name}") is not None
    }
    scored_in = [e.get("part_of", name) for name, e in (downstream or {}).items()]
    for name in dict.fromkeys([*asked["downstream"], *scored_in]):
        tasks[name] = {"task": name} | further
        own = {task: e for task, e in (downstream or {}).items() if e.get("part_of", name) == name}
        result = {"metrics": of_cloze if name == "modbench_cloze" else {}}
        if own or result["metrics"]:
            scored = result | ({"downstream": own} if own else {})
            measurements.append(measurement("downstream", tasks[name], scored))
    named = SUITE | (suite or {})
    return Result(
        record=record,
        budget=budget,
        label=label,
        isoflop=named.pop("isoflop", None),
        suite=named,
        measurements=tuple(measurements) if status == "ok" else (),
        wanted={"heldout": settings, "downstream": tasks},
    )


def make_routing(
    layers: tuple[int, ...] = (1, 3),
    experts: tuple[int, ...] = (),
    *,
    first: int = -2,
    exponent: int = 0,
    load: tuple[int, ...] = (10, 40, 30, 20),
) -> dict[str, Any]:
    """Ten windows of ten tokens."""
    weights = {"exponent": exponent, "first": first, "all": [30, 50, 20], "selected": [0, 2, 8]}
    depth = [{"layer": layer, "routed": [4, 6], "gates": weights} for layer in layers]
    rule = {
        "depth": depth,
        "experts": [{"layer": layer, "load": list(load)} for layer in experts],
    }
    routing = {
        "windows": 10,
        "sequence": 10,
        "edges": [0, 5, 10],
        "causal": rule,
        "topk": rule,
    }
    copy: dict[str, Any] = json.loads(json.dumps(routing))  # for a test that changes a part of it
    return copy


def suite_record(results: Sequence[Result], finished: str = SUITE["finished"]) -> SuiteRecord:
    """The suite that wanted ``results``, whatever their order."""
    results = sorted(results, key=lambda one: (one.label, one.budget, one.seed, one.key))
    rows: dict[str, dict[str, Any]] = {}
    tasks: dict[str, Any] = {}
    for result in results:
        row = rows.setdefault(result.label, {"label": result.label, "runs": [], "timed": []})
        row["runs"] = list(dict.fromkeys([*row["runs"], result.key]))
        row["timed"] = list(dict.fromkeys([*row["timed"], result.run.timed.key]))
        tasks |= result.wanted["downstream"]
        if result.isoflop:
            row["isoflop"] = result.isoflop
    suite = {name: results[-1].suite[name] for name in ("name", "version")}
    suite["rows"] = list(rows.values())
    heldout = {"heldout": results[0].wanted["heldout"]}
    suite["wanted"] = heldout | ({"downstream": list(tasks.values())} if tasks else {})
    made = {name: getattr(results[0].record, name) for name in ("code", "environment", "started")}
    return SuiteRecord.made(suite=suite, key=key_of(suite), finished=finished, **made)


def replace(of: Any, **changes: Any) -> Any:
    """``of``, a record or a dataclass, with other fields."""
    if not isinstance(of, Record):
        return dataclasses.replace(of, **changes)
    fields = json.loads(of.line())
    for name in ("kind", "schema", "digest"):
        del fields[name]
    return of.made(**fields | changes)


def lines_of(results: Sequence[Result], *further: AnyRecord) -> list[str]:
    """The lines of the runs and measurements of ``results``, and of ``further`` records; without one of
    a suite, that of all ``results``."""
    records = [record for result in results for record in (result.record, *result.measurements)]
    if not any(record.kind == "suite" for record in further):
        records.append(suite_record(results))
    return [record.line() for record in [*records, *further]]


def store(folder: Path, results: Sequence[Result], *further: AnyRecord, shards: int = 1) -> Path:
    """`lines_of` in ``shards`` shards under ``folder``, as bytes that no writer made."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    lines = lines_of(results, *further)
    for number in range(shards):
        path = folder / "records" / f"{number:016x}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines[number::shards]), encoding="utf-8")
    return folder


def plain(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def altered(record: AnyRecord, change: Callable[[dict[str, Any]], None]) -> str:
    """The line of ``record`` after ``change`` to its fields, with the digest of the new line."""
    value = json.loads(record.line())
    change(value)
    value["digest"] = ""
    value["digest"] = hashlib.sha256(plain(value).encode()).hexdigest()
    return plain(value)


@pytest.fixture
def fakes() -> Any:
    """This module's functions."""
    import types

    return types.SimpleNamespace(
        make_record=make_record,
        make_routing=make_routing,
        store=store,
        altered=altered,
        suite_record=suite_record,
        lines_of=lines_of,
    )


@pytest.fixture
def six() -> list[Result]:
    """A record of each built-in scheme."""
    return [
        make_record("vanilla", loss=4.90, cost=1.0),
        make_record("token_choice", loss=4.81, cost=1.02),
        make_record("expert_choice", loss=4.84, cost=1.02),
        make_record("mod", loss=4.86, cost=0.6),
        make_record("mode_staged", loss=4.83, cost=0.61),
        make_record("mode_integrated", loss=4.88, cost=0.85),
    ]


@pytest.fixture
def make() -> Make:
    """`make_record` with a width and the plan of the learning rates, changed by ``plan``; and with a
    ``depth``, in a suite of several."""

    def made(
        label: str,
        *,
        model_width: int,
        plan: Any = None,
        depth: int | None = None,
        layers: int | None = None,
        **fields: Any,
    ) -> Result:
        of_depth = {"depth": depth} if depth else {}
        suite = {"isoflop": PLAN | of_depth | (plan or {})}
        layers = layers or depth
        model = {"width": model_width} | ({"layers": layers} if layers else {})
        return make_record(label, model=model, suite=suite, **fields)

    return made
