"""The audit of a scheme: run once, stored as a record of its own, referred to by cells."""

import inspect
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import modbench
from modbench.measure.audit import findings
from modbench.measure.audit.warmed import ODD, warmed
from modbench.measure.environment import code_version, environment
from modbench.measure.loss import SCORING_BATCH
from modbench.model.config import ModelConfig
from modbench.report.record import AuditRecord, cell_key
from modbench.report.store import ShardWriter, read_suite
from modbench.routing.plugin_code import code_sha256
from modbench.routing.registry import router_class
from modbench.sweep.lock import audit_lock
from modbench.sweep.stage import Stage
from modbench.train.numerics import device

#: Seed of the weights and tokens of every audit.
SEED = 0


def scheme_of(cell: dict[str, Any]) -> dict[str, Any]:
    """The inputs of the audit of ``cell``: the code and options of its router, the shapes and the
    versions, and neither seed nor budget."""
    router, train = cell["router"], cell["train"]
    return {
        "router": {
            "name": router["name"],
            "options": router["options"],
            "code_sha256": router["plugin_sha256"] or _installed_sha256(router["name"]),
        },
        "model": cell["model"],
        # An odd length, and the length and batch of scoring.
        "shapes": [list(ODD), [SCORING_BATCH, train["sequence"]]],
        "trained": [train["batch"], train["sequence"]],
        "torch": torch.__version__,
        "modbench": modbench.__version__,
        "device": device().type,
    }


def _installed_sha256(router: str) -> str:
    """Hash of the package that holds an installed router; for built-in routers that is modbench."""
    return code_sha256(Path(inspect.getfile(router_class(router))))


def audit_of(cell: dict[str, Any], results: Path, shard: ShardWriter, stage: Stage) -> AuditRecord:
    """The audit of the scheme of ``cell``: the one stored in ``results`` (results/<suite>), or a new
    one, which is appended to ``shard``. Of processes that begin at the same time, one runs it and the
    others wait.

    Raises:
        StoppedError: a stop was requested.
    """
    scheme = scheme_of(cell)
    key = cell_key(scheme)
    with audit_lock(results, key, waiting=stage.pause):
        stored = read_suite(results).audits.get(key)
        if stored is not None:
            return stored
        record = _run(cell, scheme, stage)
        shard.append(record)
    return record


def _run(cell: dict[str, Any], scheme: dict[str, Any], stage: Stage) -> AuditRecord:
    started = datetime.now(UTC)
    model = warmed(
        ModelConfig(**cell["model"]),
        cell["router"]["name"],
        cell["router"]["options"],
        SEED,
        cell["train"]["sequence"],
    )
    found = []
    shapes, trained = [tuple(shape) for shape in scheme["shapes"]], tuple(scheme["trained"])
    for finding in findings(model, shapes=shapes, trained=trained, seed=SEED):
        found.append(asdict(finding))
        stage.pause()
    return AuditRecord(
        scheme=scheme,
        key=cell_key(scheme),
        code=code_version(),
        environment=environment(next(model.parameters()).dtype),
        audit=found,
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
