"""Converts results folders of schema 3, where a record was a cell, to schema 4: runs, measurements
of their weights, and what the suite wanted.

python tools/convert_records.py results/quick ...

Each file of records is replaced by one of the new schema; weights in ``cells/`` move to ``runs/``. Times
that a cell took of itself are left out, since their samples were not stored: `modbench time` takes them
again. No number is changed: a report of the converted folder has the same figures.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from modbench.data.config import DataConfig
from modbench.model.config import ModelConfig
from modbench.records.line import key_of, sha256
from modbench.records.metrics import METRICS
from modbench.records.record import (
    AnyRecord,
    AuditRecord,
    MeasurementRecord,
    RunRecord,
    SuiteRecord,
    TimingRecord,
)
from modbench.records.run import RouterCode, Run, Timed
from modbench.records.store import write_files
from modbench.train.checkpoint import _digest
from modbench.train.config import TrainTable
from modbench.trained.weights_folder import DESCRIPTION, WEIGHTS, Description, write_description

#: Metrics of a cell that are costs of its scheme; others were measured on held-out text.
_COSTS = (
    "forward_flops_per_token",
    "forward_flops_per_token_full",
    "train_flops_per_token",
    "parameters",
    "active_parameters",
)
_SPENT = {
    "steps": "train_steps",
    "tokens": "train_tokens",
    "flops": "train_flops",
    "flops_nominal": "train_flops_nominal",
}
_TRAINING = ("forward", "train")
_TASK = {name: f"downstream_{name}" for name in ("limit", "fewshot", "data", "include", "checkpoints")}


def main(folders: list[str]) -> int:
    for folder in map(Path, folders):
        converted = Folder(folder).convert()
        print(f"{folder}: {converted} records")
    return 0 if folders else 2


class Folder:
    """One results/<suite>."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: list[tuple[dict[str, Any], Run]] = []
        self.timed: dict[str, dict[str, None]] = {}  #: keys by label
        self.timings: list[dict[str, Any]] = []

    def convert(self) -> int:
        """Convert all records; return their number."""
        contents: dict[str, bytes] = {}
        number = 0
        files = sorted([*self.path.glob("records/*.jsonl"), *self.path.glob("timings/*.jsonl")])
        if not files:
            raise SystemExit(f"{self.path} holds no records; name the folder of a suite, results/SUITE")
        for file in files:
            records: list[AnyRecord] = []
            # A last line without an end was cut off when its writer was killed.
            for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
                records += self.converted(read(line))
            number += len(records)
            contents[file.name] = "".join(f"{record.line()}\n" for record in records).encode()
        if self.cells or self.timed:
            suite = self.suite()
            contents[f"{suite.key}.jsonl"] = f"{suite.line()}\n".encode()
            number += 1
        write_files(self.path / "records", contents)
        shutil.rmtree(self.path / "timings", ignore_errors=True)
        for record, run in self.cells:
            self.move_weights(record, run)
        return number

    def converted(self, old: dict[str, Any]) -> Iterator[AnyRecord]:
        """The records of schema 4 of the record ``old``."""
        kind = old.pop("kind")
        if kind == "audit":
            yield AuditRecord(**old)
        elif kind == "timing":
            yield from self.timing(old)
        else:
            yield from self.cell(old)

    def cell(self, old: dict[str, Any]) -> Iterator[AnyRecord]:
        cell, metrics, seconds = old["cell"], old["metrics"], dict(old.get("seconds") or {})
        run = run_of(cell)
        self.cells.append((old, run))
        made = {name: old[name] for name in ("code", "environment", "started", "finished")}
        is_ok = old["status"] == "ok"
        ends = []
        if is_ok:
            end = {name: metrics[of] for name, of in _SPENT.items()}
            ends = [{"budget": cell["train"]["budget"], **end, "audit": old["audit"]}]
        of_tasks = [name for name in metrics if name.startswith("modbench_cloze")]
        measuring = {name: seconds.pop(name) for name in ("heldout", "downstream") if name in seconds}
        optional = {name: old[name] for name in ("audit_key", "flops_source") if old.get(name)}
        yield RunRecord(
            run=run.as_json(),
            key=run.key,
            data=old["data"],
            metrics={name: metrics[name] for name in _COSTS if name in metrics},
            ends=ends,
            curve=old["curve"],
            status=old["status"],
            error=old["error"],
            seconds=seconds or None,
            **optional,
            **made,
        )
        if not is_ok:
            return

        def measured(kind: str, settings: dict[str, Any], result: dict[str, Any]) -> MeasurementRecord:
            budget = cell["train"]["budget"]
            subject = {"run": run.key, "budget": budget, "measures": kind, "settings": settings}
            taken = {kind: measuring[kind]} if kind in measuring else None
            return MeasurementRecord(
                measurement=subject,
                key=key_of(subject),
                result=result,
                status="ok",
                error=None,
                seconds=taken,
                **made,
            )

        apart = {*_COSTS, *_SPENT.values(), *of_tasks}
        apart |= {name for name, of in METRICS.items() if of.kind == "timed"}
        heldout = {name: value for name, value in metrics.items() if name not in apart}
        if heldout:
            result: dict[str, Any] = {"metrics": heldout}
            result |= {name: old[name] for name in ("routing", "layers") if old.get(name)}
            settings = {name: cell["measure"][name] for name in ("heldout_tokens", "curve_tokens")}
            yield measured("heldout", settings, result)
        scores = old.get("downstream") or {}
        for name in cell["measure"]["downstream"]:
            own = {task: entry for task, entry in scores.items() if entry["part_of"] == name}
            if own:
                result = {"downstream": own}
                result["metrics"] = {m: metrics[m] for m in of_tasks} if name == "modbench_cloze" else {}
                yield measured("downstream", task_of(cell, name), result)

    def timing(self, old: dict[str, Any]) -> Iterator[TimingRecord]:
        self.timings.append(dict(old))
        cell, kind = old.pop("cell"), old.pop("measurement")
        router = cell["router"]
        timed = Timed(
            router=None if router is None else router_of(router),
            model=ModelConfig(**cell["model"]),
            **{name: cell["train"][name] for name in ("sequence", "batch", "precision")},
        )
        if router is not None:
            self.timed.setdefault(router["label"], {})[timed.key] = None
        del old["suite"]
        fields = old | {"session": old.pop("run"), "timed": timed.as_json(), "key": timed.key}
        fields.pop("run", None)
        fields["time"] = cell["time"]
        if kind != "time":
            yield TimingRecord(**fields | {"measures": kind})
            return
        for measures in ("training", "inference"):
            measured, own = dict(old["measured"]), dict(fields)
            for name in ("cases", "ran_out"):
                if name in measured:
                    measured[name] = [
                        case
                        for case in measured[name]
                        if (case["phase"] in _TRAINING) == (measures == "training")
                    ]
            if not measured.get("ran_out"):
                measured.pop("ran_out", None)
                if old["status"] == "oom" and measured.get("cases"):
                    own |= {"status": "ok", "error": None, "asked_bytes": None}
            yield TimingRecord(**own | {"measures": measures, "measured": measured})

    def suite(self) -> SuiteRecord:
        """The record of the suite, as far as the records tell what it wanted."""
        rows: dict[str, dict[str, Any]] = {}
        ordered = sorted(self.cells, key=lambda pair: pair[0]["finished"])
        for record, run in ordered:
            label = record["cell"]["router"]["label"]
            row = rows.setdefault(label, {"label": label, "runs": [], "timed": []})
            row["runs"] = list(dict.fromkeys([*row["runs"], run.key]))
            row["timed"] = list(dict.fromkeys([*row["timed"], run.timed.key]))
            if plan := record["suite"].get("isoflop"):
                row["isoflop"] = plan
        for label, keys in self.timed.items():
            row = rows.setdefault(label, {"label": label, "runs": [], "timed": []})
            row["timed"] = list(dict.fromkeys([*row["timed"], *keys]))
        newest = ordered[-1][0] if ordered else max(self.timings, key=lambda old: str(old["finished"]))
        measure = newest["cell"].get("measure", {"steps": ()})  # a timing has none
        wanted: dict[str, Any] = {}
        if "heldout" in measure["steps"]:
            wanted["heldout"] = {name: measure[name] for name in ("heldout_tokens", "curve_tokens")}
        if "downstream" in measure["steps"]:
            wanted["downstream"] = [task_of(newest["cell"], name) for name in measure["downstream"]]
        of = {"rank_by": "heldout_loss"} | newest["suite"]
        suite = {name: of[name] for name in ("name", "version", "rank_by")}
        suite |= {"rows": list(rows.values()), "wanted": wanted}
        made = {name: newest[name] for name in ("code", "environment", "started", "finished")}
        return SuiteRecord(suite=suite, key=key_of(suite), **made)

    def move_weights(self, record: dict[str, Any], run: Run) -> None:
        """Move the folder of a cell to that of its run, and name the run in its files."""
        old, new = self.path / "cells" / record["key"], self.path / "runs" / run.key
        if not (old / WEIGHTS).is_file() or not (old / DESCRIPTION).is_file():
            return
        merges = json.loads((old / DESCRIPTION).read_bytes())["merges"]
        new.parent.mkdir(exist_ok=True)
        old.replace(new)
        for file in [new / WEIGHTS, *new.glob("points/*.safetensors")]:
            with safe_open(file, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            owner = {"router": run.router.name, "key": run.key}
            owner["sha256"] = _digest(owner, tensors)
            save_file(tensors, file, metadata={"modbench": json.dumps(owner)})
        label = record["cell"]["router"]["label"]
        suite = record["suite"]["name"]
        write_description(new, Description(suite=suite, label=label, run=run, merges=merges))


def read(line: str) -> dict[str, Any]:
    """The fields of a line of schema 3, without schema and digest."""
    value = json.loads(line)
    schema = value.pop("schema")
    digest = value.pop("digest", None)
    if schema != 3:
        raise SystemExit(f"schema is {schema}; only 3 is converted")
    if digest != sha256(line.replace(f'"digest":"{digest}"', '"digest":""', 1)):
        raise SystemExit(f"a record was changed after it was written: {line[:80]}")
    kind = value.get("kind", "cell")
    if kind in ("time", "ceiling", "training_memory", "inference_memory"):
        value |= {"kind": "timing", "measurement": kind}
    return value | {"kind": value.get("kind", "cell")}


def router_of(router: dict[str, Any]) -> RouterCode:
    return RouterCode(
        name=router["name"], options=router["options"], plugin_sha256=router["plugin_sha256"]
    )


def run_of(cell: dict[str, Any]) -> Run:
    """The run of a cell."""
    train = dict(cell["train"])
    budget = train.pop("budget")
    table = TrainTable(**train)
    return Run(
        router=router_of(cell["router"]),
        model=ModelConfig(**cell["model"]),
        data=DataConfig(**cell["data"]),
        train=table.config(),
        schedule=table.schedule_of((budget,)),
        seed=cell["seed"],
    )


def task_of(cell: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of the downstream task ``name`` of a cell."""
    found = {key: cell["measure"].get(of) for key, of in _TASK.items()}
    return {"task": name} | {key: value for key, value in found.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
