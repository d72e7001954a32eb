"""Results of small runs: records, and weights that need no training."""

from pathlib import Path
from typing import Any

from modbench.model.config import ModelConfig
from modbench.records.record import CellRecord, Status, cell_key
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router
from modbench.train.checkpoint import save_weights
from modbench.trained.find import find_record
from modbench.trained.weights_folder import Description, write_description

SHAPE = {"vocabulary": 257, "width": 16, "layers": 2, "heads": 2}
OPTIONS: dict[str, dict[str, Any]] = {"mod": {"causal": "ema_threshold"}}
#: Two rows of one suite, and two seeds of a third one: label, router, seed.
RUNS = [("mod", "mod", 0), ("vanilla", "vanilla", 0), ("twice", "mod", 0), ("twice", "mod", 1)]


def record_of(
    label: str, router: str, seed: int, status: Status = "ok", /, **cell: dict[str, Any]
) -> CellRecord:
    """The record of a cell; ``cell``: tables in place of the small ones."""
    tables: dict[str, Any] = {
        "router": {
            "name": router,
            "options": OPTIONS.get(router, {}),
            "plugin_sha256": None,
            "label": label,
        },
        "model": SHAPE,
        "data": {"tokenizer": "bytes"},
        "train": {"budget": 1, "sequence": 10},
        "measure": {},
        "seed": seed,
    } | cell
    return CellRecord(
        suite={"name": "tiny", "version": 1, "rank_by": "heldout_loss"},
        cell=tables,
        key=cell_key(tables),
        code={"version": "0", "commit": None, "dirty": None},
        environment={"cpu": None, "gpu": None, "threads": 1, "torch": "2"},
        data={"sha256": "ab", "train_tokens": 1, "heldout_tokens": 1},
        audit=[],
        metrics={},
        curve=[],
        routing={},
        status=status,
        error=None if status == "ok" else "the loss is nan at step 3",
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:01+00:00",
    )


def add_records(results: Path, *records: CellRecord) -> None:
    """Append ``records`` to those of the suite tiny in ``results``."""
    shard = results / "tiny" / "records" / "a.jsonl"
    shard.parent.mkdir(parents=True, exist_ok=True)
    with shard.open("a") as file:
        file.writelines(record.line() + "\n" for record in records)


def weights_at(results: Path, record: CellRecord) -> Path:
    """The path of the weights of ``record``, in a folder that exists."""
    path = results / "tiny" / "cells" / record.key / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def model_of(router: str) -> RoutedDecoder:
    return build_model(ModelConfig(**SHAPE), build_router(router, OPTIONS.get(router, {})))


def save_trained(results: Path, run: str, merges: Any = None) -> Path:
    """Save weights of ``run``, and with ``merges`` its description as training does; return their
    folder."""
    _, record = find_record(run, results)
    router, folder = record.cell["router"], weights_at(results, record).parent
    model = build_model(
        ModelConfig(**record.cell["model"]),
        build_router(router["name"], router["options"]),
        seed=record.cell["seed"],
    )
    if merges is not None:
        write_description(folder, Description(suite="tiny", cell=record.cell, merges=merges))
    save_weights(folder / "model.safetensors", model, key=record.key)
    return folder
