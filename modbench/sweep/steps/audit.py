"""The audit of a run's scheme. It belongs to the scheme: it runs once, is stored as a record of its own,
and runs of other budgets and seeds refer to it by its key."""

import inspect
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

import modbench
from modbench.audit import findings
from modbench.audit.warmed import ODD, fitting, warm_up
from modbench.hf.config import stretched
from modbench.hf.models import model_of
from modbench.measure.environment import code_version, environment
from modbench.measure.loss import SCORING_BATCH
from modbench.model.config import ModelConfig
from modbench.model.shape import TRANSFORMERS, HubConfig, Shape, shape_json
from modbench.records.line import key_of
from modbench.records.record import AuditRecord
from modbench.records.run import Run
from modbench.records.store import append_record, read_audit
from modbench.routing.registry import build_router, code_sha256, router_class
from modbench.sweep.lease import Lease, LostError
from modbench.sweep.run_job import RunWork
from modbench.timing.footprint import release_memory
from modbench.train.numerics import device

#: Seed of the weights and tokens of every audit.
SEED = 0
#: Tokens that a probe may read beyond the sequence of training.
LONGEST = 256


def audit(work: RunWork) -> None:
    """Take the audit that is stored, or run and store it. Of processes that begin at the same time, one
    runs it and the others wait. Raises StoppedError: a stop was requested."""
    scheme = scheme_of(work.run)
    key = key_of(scheme)
    waiting = partial(work.stage.wait, "waiting for another run to audit this scheme")
    results = work.job.results
    with Lease(results / "runs" / f"audit-{key}").held(waiting) as lease:
        work.stage.check()
        work.stage.resume()
        stored = read_audit(results, key)
        if stored is None:
            stored = _run(work, scheme)
            with suppress(LostError):  # another process stores it
                lease.check()
                append_record(results, stored)
    work.audited(stored)
    release_memory(work.device)


def scheme_of(run: Run) -> dict[str, Any]:
    """The inputs of the audit of ``run``: the code and options of its router, the shapes and the
    versions, and neither seed nor budget."""
    router, train = run.router, run.train
    return {
        "router": {
            "name": router.name,
            "options": router.options,
            # Of an installed router, the hash of its package; of a built-in one, that of modbench.
            "code_sha256": router.plugin_sha256 or code_sha256(Path(_file_of(router.name))),
        },
        "model": shape_json(_shape(run)),
        # An odd length, and the length and batch of scoring.
        "shapes": [list(ODD), [SCORING_BATCH, train.sequence]],
        "trained": [train.rows, train.sequence],
        "torch": torch.__version__,
        "modbench": modbench.__version__,
        "device": device().type,
    }


def _file_of(router: str) -> str:
    """The file of the code of ``router``; of models of transformers, that of our adapter."""
    if router == TRANSFORMERS:
        import modbench.hf.model

        return modbench.hf.model.__file__
    return inspect.getfile(router_class(router))


def _shape(run: Run) -> Shape:
    """The shape that is audited: with random weights, and positions for the longest text of a probe."""
    if not isinstance(run.model, HubConfig):
        return run.model
    return stretched(run.model, run.train.sequence + LONGEST)


def _run(work: RunWork, scheme: dict[str, Any]) -> AuditRecord:
    started = datetime.now(UTC)
    router = work.run.router
    shape, note = _shape(work.run), ""
    if isinstance(shape, ModelConfig):
        shape, note = fitting(shape, build_router(router.name, router.options))
    fresh = model_of(shape, router.name, router.options, SEED)
    model = warm_up(fresh, SEED, work.train.sequence)
    probes = []
    shapes = [tuple(shape) for shape in scheme["shapes"]]
    trained = tuple(scheme["trained"])
    for finding in findings(model, shapes=shapes, trained=trained, seed=SEED):
        probes.append(asdict(replace(finding, figure=finding.figure + note)))
        work.stage.tell()
        work.stage.check()
    return AuditRecord.made(
        scheme=scheme,
        key=key_of(scheme),
        code=code_version(),
        environment=environment(next(model.parameters()).dtype),
        audit=probes,
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
