"""A run while its job works on it, and the preparation of a job's process."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from modbench.data.token_data import TokenData
from modbench.errors import UserError
from modbench.hf.models import model_of
from modbench.measure.loss import heldout_windows
from modbench.model.language_model import LanguageModel
from modbench.model.shape import HubConfig
from modbench.records.record import AnyRecord, AuditRecord, Finding
from modbench.records.run import RouterCode
from modbench.records.store import append_record, read_audit, read_run
from modbench.routing.registry import check_source, load_plugin
from modbench.sweep.job import RunJob
from modbench.sweep.lease import Lease
from modbench.sweep.process import Say
from modbench.sweep.track import Trackers
from modbench.timing.system_load import measuring
from modbench.train.checkpoint import DamagedError, load_weights
from modbench.train.loop import StoppedError
from modbench.train.numerics import device, precision
from modbench.trained.weights_folder import WEIGHTS

#: Seconds between two events of a wait, which tell the parent that this process is alive.
_TOLD_SECONDS = 5.0


class Stage:
    """Reports a job's steps to ``say``, and ends it when ``stop`` returns True. ``seconds``: wall time
    of each step, waits apart; the first one is since ``began``, by the monotonic clock."""

    def __init__(
        self,
        say: Say,
        stop: Callable[[], bool] = lambda: False,
        *,
        began: float | None = None,
    ) -> None:
        self.say = say
        self.stopped = stop
        self.seconds: dict[str, float] = defaultdict(float)
        self._told_of: dict[str, float] = defaultdict(float)  #: seconds that `spent` has returned
        self._name = "start"
        self._before = "start"
        self._told = 0.0
        self._since = time.monotonic() if began is None else began

    def begin(self, name: str) -> None:
        """Begin another step. Raises StoppedError: a stop was requested."""
        self.check()
        self._enter(name)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure alone on this machine; see `modbench.timing.system_load.measuring`. Raises
        StoppedError: a stop was requested while this waited."""
        with measuring(wait=self.wait, poll=self.check):
            self.resume()
            yield

    def wait(self, reason: str) -> None:
        """Report that the job waits, and why; `resume` ends the wait. Raises StoppedError: a stop was
        requested."""
        if self._name != "waiting":
            self._before = self._name
            self._account("waiting")
            self._told = 0.0
        if time.monotonic() - self._told > _TOLD_SECONDS:
            self._told = time.monotonic()
            self.say({"event": "phase", "phase": reason})
        self.check()

    def check(self) -> None:
        """Raises StoppedError: a stop was requested."""
        if self.stopped():
            raise StoppedError

    def seconds_of_step(self) -> float:
        """Seconds of the current step so far; while it waits, those before."""
        name = self._before if self._name == "waiting" else self._name
        now = 0.0 if self._name == "waiting" else time.monotonic() - self._since
        return self.seconds[name] + now

    def spent(self) -> dict[str, float]:
        """Seconds of each step since the last call."""
        self._account(self._name)
        rest = {name: seconds - self._told_of[name] for name, seconds in self.seconds.items()}
        self._told_of |= self.seconds
        return {name: round(seconds, 3) for name, seconds in rest.items() if seconds > 0}

    def end(self) -> dict[str, float]:
        """End the last step; return the seconds of each."""
        self._account("end")
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}

    def tell(self) -> None:
        """Report the current step again: the job makes progress."""
        self.say({"event": "phase", "phase": self._name})

    def resume(self) -> None:
        """Go on with the step before a wait, if there was one."""
        if self._name == "waiting":
            self._enter(self._before)

    def _enter(self, name: str) -> None:
        self._account(name)
        self.tell()

    def _account(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[self._name] += now - self._since
        self._name, self._since = name, now


class RunWork:
    """The run of ``job`` while it is worked on: what training and measurements need, and what they have
    found. ``lease``: under which records are stored; None: it stores none."""

    def __init__(self, job: RunJob, data: TokenData, stage: Stage, lease: Lease | None = None) -> None:
        self.job = job
        self.run = job.run
        self.train = job.run.train
        self.folder = job.folder
        self.data = data
        self.stage = stage
        self._lease = lease
        self.device = device()
        self.dtype = precision(self.train.precision, self.device)
        self.trackers = Trackers(job.track, job.suite, job.label, self.run, self.folder)
        self.decodes = True  #: False: the audit has found that decoding differs from a full forward pass
        self.audit_key: str | None = None  #: of its scheme
        self.findings: list[Finding] = []  #: of the audit
        self.fields: dict[str, Any] = {}  #: by field of the run's record; a lost run keeps them
        #: Seconds that earlier jobs have trained it; None: not known before training begins.
        self.earlier_seconds: float | None = None
        if not job.train and (record := read_run(job.results, self.run.key)):
            self.fields["ends"] = record.ends
            if audit := read_audit(job.results, record.audit_key or ""):
                self.audited(audit)

    def store(self, record: AnyRecord) -> None:
        """Store ``record``. Raises LostError: another process has taken over the run."""
        self.check()
        append_record(self.job.results, record)

    def check(self) -> None:
        """Raises LostError: another process has taken over the run."""
        if self._lease:
            self._lease.check()

    def audited(self, audit: AuditRecord) -> None:
        """Use the ``audit`` of its scheme."""
        self.audit_key, self.findings = audit.key, audit.audit
        self.decodes = not any(
            finding.name == "decode parity" and finding.verdict == "failed" for finding in audit.audit
        )

    def fresh_model(self, *, random: bool = False) -> LanguageModel:
        """The run's model before training; ``random``: without the weights of a folder that its training
        begins with."""
        router, shape = self.run.router, self.run.model
        if random and isinstance(shape, HubConfig):
            shape = shape.random
        return model_of(shape, router.name, router.options, self.run.seed).to(self.device)

    def trained_model(self) -> LanguageModel:
        """The trained model."""
        model = self.fresh_model(random=True)
        weights = self.folder / WEIGHTS
        try:
            load_weights(weights, model, key=self.run.key)
        except DamagedError as error:
            raise UserError(
                f"weights {weights} are damaged ({error}); remove the file, and the run is trained again"
            ) from error
        return model.train()

    def windows(self, tokens: int | Literal["all"]) -> np.ndarray:
        """Held-out windows (W, T + 1) of about ``tokens`` tokens."""
        tokens = len(self.data.heldout_N) if tokens == "all" else tokens
        return heldout_windows(self.data.heldout_N, sequence=self.train.sequence, tokens=tokens)

    def say(self, event: dict[str, Any]) -> None:
        """Tell observers and trackers of an event."""
        if event["event"] == "resumed" and self.earlier_seconds is None:
            self.earlier_seconds = event["seconds"]
        self.stage.say(event)
        self.trackers.event(event)


def prepare_process(router: RouterCode | None, plugins: Sequence[str], threads: int) -> None:
    """Set the threads of this process and load ``plugins``. Raises UserError: a plugin raises, or the
    code of ``router`` has changed since the command began."""
    torch.set_num_threads(threads)
    for plugin in plugins:
        load_plugin(plugin)
    if router is not None:
        check_source(router.name, router.plugin_sha256)
