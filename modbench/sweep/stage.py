"""The stage of a running job: its current step, the time spent in each, stop requests and pauses."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from modbench.timing.machine_lock import measured_elsewhere, measuring
from modbench.train.loop import StoppedError

Say = Callable[[dict[str, Any]], None]
#: Seconds between two checks of a wait: too short to notice when a job is stopped.
_POLL_SECONDS = 0.1
#: Seconds between two events of a wait, which tell the parent that this process is alive.
_TOLD_SECONDS = 5.0


class Stage:
    """Reports a job's steps to ``say``, ends it when ``stop`` returns True, and pauses it while another
    process measures, unless ``pauses`` is False. ``seconds``: wall time of each step, waits apart."""

    def __init__(
        self, say: Say, stop: Callable[[], bool] = lambda: False, *, pauses: bool = True
    ) -> None:
        self.say = say
        self._stop = stop
        self._pauses = pauses
        self.seconds: dict[str, float] = defaultdict(float)
        self._told_of: dict[str, float] = defaultdict(float)  #: seconds that `spent` has returned
        self._name = "start"
        self._before = "start"
        self._told = 0.0
        self._since = time.monotonic() - (time.time() - psutil.Process().create_time())

    def begin(self, name: str) -> None:
        """Pause if needed, then begin another step. Raises StoppedError: a stop was requested."""
        self.pause()
        self._enter(name)

    def pause(self) -> None:
        """Wait until no other process measures. Takes microseconds if none does. Raises StoppedError: a
        stop was requested."""
        self.check()
        while self._pauses and (what := measured_elsewhere()):
            self.wait(f"waiting for {what} to end")
            time.sleep(_POLL_SECONDS)
        self._resume()

    @contextmanager
    def measuring(self, title: str) -> Iterator[None]:
        """Measure alone on this machine; see `modbench.timing.machine_lock.measuring`. Raises
        StoppedError: a stop was requested while this waited."""
        with measuring(title, wait=self.wait, poll=self.check):
            self._resume()
            yield

    def wait(self, reason: str) -> None:
        """Report that the job waits, and why; `pause` ends the wait. Raises StoppedError: a stop was
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
        if self._stop():
            raise StoppedError

    def stopped(self) -> bool:
        """Pause if needed; return True if a stop was requested."""
        try:
            self.pause()
        except StoppedError:
            return True
        return False

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

    def _resume(self) -> None:
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
