"""Ray: a task of Ray Core for each job. Results are records in the shared folder, never Ray objects."""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modbench.errors import UserError, several
from modbench.sweep.executor import PASSED, PATIENCE, Executor, Tell, whole
from modbench.sweep.job import LOG, Job, read_job
from modbench.sweep.process import FILE, Process, python_path

#: A task that fails as often as this takes its worker or its node with it.
_RETRIES = 3
_STOP_SECONDS, _WORKER_SECONDS = 30.0, 20.0  #: for checkpoints: of all tasks, and of a worker
_POLL_SECONDS = 0.2  #: too short a delay to notice
_CONNECT_SECONDS = 10.0  #: a slow network answers sooner
_REMEDY = "set RAY_ADDRESS to the cluster's HOST:PORT, which `ray start --head` prints"


class StoppedError(Exception):
    """A task's process was asked to stop, and its job has stored a checkpoint."""


class Ray(Executor):
    """Executor of Ray, ``workers`` tasks at a time (0: no limit). ``request``: num_cpus and num_gpus of
    each; by default 1 CPU, and where the cluster has GPUs, ``ranks``: one per process of a run."""

    def __init__(self, request: Mapping[str, str], workers: int, ranks: int = 1) -> None:
        if unknown := {*request} - {"num_cpus", "num_gpus"}:
            raise UserError(
                f"--request {min(unknown)}: --engine ray knows num_cpus and num_gpus, such as num_gpus=1"
            )
        self.threads = whole(request, "num_cpus", 1)
        self._gpus = whole(request, "num_gpus", 0, least=0) if "num_gpus" in request else None
        self._workers = workers
        self._ranks = ranks
        self._tasks: dict[Any, Path] = {}
        self._waiting: deque[Path] = deque()
        self._remote: Any = None

    def check(self) -> None:
        """Raises UserError: there is no Ray, or it can't do what was requested."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise UserError(
                "--engine ray needs Ray, which is not installed; in the clone of modbench, run "
                "`python -m pip install '.[ray]'`"
            ) from None
        address = os.environ.get("RAY_ADDRESS", "")
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if host and port.isdigit():
            _check_address(address, host, int(port))
        variables = {name: os.environ[name] for name in PASSED if name in os.environ}
        variables |= {"PYTHONPATH": python_path(), "PYTHONSAFEPATH": "1"}
        try:
            ray.init(
                log_to_driver=False,
                logging_level="WARNING",
                include_dashboard=False,
                runtime_env={"env_vars": variables},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"--engine ray: Ray can't be used here ({said}); {_REMEDY}") from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = max(node.get("GPU", 0) for node in nodes)
        if self._gpus is None:
            self._gpus = self._ranks if gpus else 0
        for name, kind, most in (("num_gpus", "GPU", self._gpus), ("num_cpus", "CPU", self.threads)):
            known = max(int(node.get(kind, 0)) for node in nodes)
            if most > known:
                raise UserError(f"--request {name}={most}: a node of the cluster has at most {known}")
        task = ray.remote(
            num_cpus=self.threads,
            num_gpus=self._gpus,
            max_retries=_RETRIES,
            retry_exceptions=[StoppedError],
        )
        self._remote = task(run_in_ray)

    def alive(self) -> set[Path]:
        import ray

        waiting = [*self._tasks]
        ended, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0) if waiting else ([], [])
        for task in ended:
            folder = self._tasks.pop(task)
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:  # the lack of a record ends the job
                lines = str(error).strip().splitlines() or [type(error).__name__]
                self.trouble = f"ray: a task of {folder} failed: {lines[-1].strip()[:200]}"
        self._start()
        return {*self._tasks.values(), *self._waiting}

    def submit(self, jobs: Sequence[Job], tell: Tell) -> Sequence[Job]:
        self._waiting += [job.folder for job in jobs]
        self._start()
        tell(f"ray: {several(len(jobs), 'task')} submitted")
        return jobs

    def end(self, folder: Path) -> None:
        import ray

        for task in [task for task, of in self._tasks.items() if of == folder]:
            ray.cancel(task)

    def _start(self) -> None:
        """Make tasks of jobs that wait, up to the number at a time."""
        while self._waiting and (not self._workers or len(self._tasks) < self._workers):
            folder = self._waiting.popleft()
            self._tasks[self._remote.remote(str(folder))] = folder

    def stop(self, hurry: Callable[[], bool], tell: Tell) -> None:
        import ray

        running = [*self._tasks]
        for task in running:
            ray.cancel(task)  # as Ctrl-C in its process
        if running:
            ray.wait(running, num_returns=len(running), timeout=_STOP_SECONDS)
        ray.shutdown()
        tell(f"ray: {several(len(running), 'task')} stopped, each with a checkpoint if it ran")


def _check_address(address: str, host: str, port: int) -> None:
    """Raise a `UserError` if nothing answers at ``address``; Ray itself tries for minutes."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--engine ray: RAY_ADDRESS is {address}, and nothing answers there ({error}); {_REMEDY}"
        ) from error


def run_in_ray(name: str) -> None:
    """Run the worker of the job in the folder ``name``, as a process of its own: one of Ray's runs
    several tasks. Raises StoppedError: asked to stop."""
    folder = Path(name)
    job = read_job((folder / FILE).read_bytes())
    worker = Process(folder, log=folder / LOG, threads=job.threads, patience=PATIENCE)
    try:
        while not worker.ended():
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        worker.ask_to_stop()
        deadline = time.monotonic() + _WORKER_SECONDS
        while not worker.ended() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        raise StoppedError(name) from None
    finally:
        worker.close()
