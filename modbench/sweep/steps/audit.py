"""Step ``audit``: the audit of the cell's scheme. It belongs to the scheme: it runs once, is stored as a
record of its own, and cells of other budgets and seeds refer to it by its key."""

import inspect
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

import modbench
from modbench.audit import findings
from modbench.audit.warmed import ODD, warmed
from modbench.measure.environment import code_version, environment
from modbench.measure.loss import SCORING_BATCH
from modbench.model.config import ModelConfig
from modbench.records.record import AuditRecord, cell_key
from modbench.records.store import append_record, read_suite
from modbench.routing.build import RoutedDecoder
from modbench.routing.registry import code_sha256, router_class
from modbench.sweep.cell import CellRun
from modbench.sweep.lock import audit_lock
from modbench.timing.memory_meter import release_memory
from modbench.train.numerics import device

#: Seed of the weights and tokens of every audit.
SEED = 0


def audit(model: RoutedDecoder, cell: CellRun) -> dict[str, Any]:
    """Take the audit that is stored, or run and store it. Of processes that begin at the same time, one
    runs it and the others wait. No metrics. Raises StoppedError: a stop was requested."""
    scheme = scheme_of(cell.cell)
    key = cell_key(scheme)
    waiting = partial(cell.stage.wait, "waiting for another cell to audit this scheme")
    with audit_lock(cell.results, key, waiting=waiting):
        cell.stage.pause()
        stored = read_suite(cell.results).audits.get(key)
        if stored is None:
            stored = _run(cell, scheme)
            append_record(cell.results, stored)
    cell.found["audit_key"] = key
    cell.decodes = not any(
        finding["name"] == "decode parity" and finding["verdict"] == "failed" for finding in stored.audit
    )
    release_memory(cell.device)
    return {}


def scheme_of(cell: dict[str, Any]) -> dict[str, Any]:
    """The inputs of the audit of ``cell``: the code and options of its router, the shapes and the
    versions, and neither seed nor budget."""
    router, train = cell["router"], cell["train"]
    return {
        "router": {
            "name": router["name"],
            "options": router["options"],
            # Of an installed router, the hash of its package; of a built-in one, that of modbench.
            "code_sha256": router["plugin_sha256"]
            or code_sha256(Path(inspect.getfile(router_class(router["name"])))),
        },
        "model": cell["model"],
        # An odd length, and the length and batch of scoring.
        "shapes": [list(ODD), [SCORING_BATCH, train["sequence"]]],
        "trained": [train["batch"], train["sequence"]],
        "torch": torch.__version__,
        "modbench": modbench.__version__,
        "device": device().type,
    }


def _run(cell: CellRun, scheme: dict[str, Any]) -> AuditRecord:
    started, router = datetime.now(UTC), cell.cell["router"]
    model = warmed(
        ModelConfig(**cell.cell["model"]),
        router["name"],
        router["options"],
        SEED,
        cell.train.sequence,
    )
    found = []
    shapes, trained = [tuple(shape) for shape in scheme["shapes"]], tuple(scheme["trained"])
    for finding in findings(model, shapes=shapes, trained=trained, seed=SEED):
        found.append(asdict(finding))
        cell.stage.tell()
        cell.stage.pause()
    return AuditRecord(
        scheme=scheme,
        key=cell_key(scheme),
        code=code_version(),
        environment=environment(next(model.parameters()).dtype),
        audit=found,
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
