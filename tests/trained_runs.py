"""Results of small runs: records, and weights that need no training."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from modbench.data.config import DataConfig
from modbench.data.tokenizer import Tokenizer
from modbench.model.config import ModelConfig
from modbench.records.record import RunRecord, Status, SuiteRecord, key_of
from modbench.records.result import Result
from modbench.records.run import RouterCode, Run
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router
from modbench.train.checkpoint import save_weights
from modbench.train.config import TrainConfig
from modbench.train.schedule import Schedule
from modbench.trained.load import find_result
from modbench.trained.weights_folder import Description, write_description

SHAPE = {"vocabulary": 257, "width": 16, "layers": 2, "heads": 2}
OPTIONS: dict[str, dict[str, Any]] = {"mod": {"causal": "ema_threshold"}}
#: Two rows of one suite, and two seeds of a third one: label, router, seed.
RUNS = [("mod", "mod", 0), ("vanilla", "vanilla", 0), ("twice", "mod", 1), ("twice", "mod", 2)]
STATE = {"compare": (), "left": 0, "wanted": 0, "rank": (0, "", "")}
HEADER = {"name": "tiny", "version": 1}
SUITE = HEADER | STATE
_MADE = {
    "code": {"version": "0", "commit": None, "dirty": None},
    "environment": {"cpu": None, "gpu": None, "threads": 1, "torch": "2"},
    "started": "2026-01-01T00:00:00+00:00",
    "finished": "2026-01-01T00:00:01+00:00",
}


def record_of(
    label: str,
    router: str,
    seed: int,
    status: Status = "ok",
    *,
    options: dict[str, Any] | None = None,
    plugin_sha256: str | None = None,
    model: dict[str, Any] | None = None,
    budget: int = 1,
    **train: Any,
) -> Result:
    """The result of a run of ``label``; ``train``: fields in place of the small ones."""
    options = OPTIONS.get(router, {}) if options is None else options
    run = Run(
        router=RouterCode(name=router, options=options, plugin_sha256=plugin_sha256),
        model=ModelConfig(**(model or SHAPE)),
        data=DataConfig(tokenizer="bytes"),
        train=TrainConfig(**{"sequence": 10, **train}),
        schedule=Schedule(budgets=(budget,)),
        seed=seed,
    )
    spent = {"steps": 1, "tokens": 10, "flops": 1, "flops_nominal": 1, "audit": []}
    fields: dict[str, Any] = {
        "run": run.as_json(),
        "key": run.key,
        "data": {"sha256": "ab", "train_tokens": 1, "heldout_tokens": 1},
        "metrics": {},
        "ends": [{"budget": budget, **spent}] if status == "ok" else [],
        "curve": [],
        "status": status,
        "error": None if status == "ok" else "the loss is nan at step 3",
    }
    return Result(record=RunRecord.made(**fields, **_MADE), budget=budget, label=label, suite=SUITE)


def add_records(results: Path, *runs: Result) -> None:
    """Append ``runs``, and a suite that names them, to the records of the suite tiny in ``results``."""
    keys = defaultdict(list)
    for run in runs:
        keys[run.label].append(run.key)
    rows = [{"label": label, "runs": named, "timed": []} for label, named in keys.items()]
    suite = HEADER | {"rows": rows, "wanted": {}}
    shard = results / "tiny" / "records" / "a.jsonl"
    shard.parent.mkdir(parents=True, exist_ok=True)
    with shard.open("a+") as file:
        file.seek(0)
        finished = f"2026-01-01T00:01:{len(file.readlines()):02}+00:00"  # later than those before it
        named = SuiteRecord.made(suite=suite, key=key_of(suite), **_MADE | {"finished": finished})
        file.writelines(line.line() + "\n" for line in (*(run.record for run in runs), named))


def weights_at(results: Path, run: Result) -> Path:
    """The path of the weights of ``run``, in a folder that exists."""
    path = results / "tiny" / "runs" / run.key / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def model_of(router: str) -> RoutedDecoder:
    return build_model(ModelConfig(**SHAPE), build_router(router, OPTIONS.get(router, {})))


def save_trained(results: Path, name: str, merges: Any = None) -> Path:
    """Save weights of the run ``name``, and with ``merges`` its description as training does; return
    their folder."""
    _, result = find_result(name, results)
    run, folder = result.run, weights_at(results, result).parent
    model = build_model(run.model, build_router(run.router.name, run.router.options), seed=run.seed)
    if merges is not None:
        tokenizer = Tokenizer(merges)
        description = Description(suite="tiny", label=result.label, run=run, tokenizer=tokenizer)
        write_description(folder, description)
    save_weights(folder / "model.safetensors", model, key=run.key)
    return folder
