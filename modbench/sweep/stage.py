"""The stage of a running cell: its phase, a stop request, and pauses while another process measures."""

from collections.abc import Callable
from typing import Any

from modbench.measure.machine_lock import MachineLock
from modbench.train.loop import StoppedError

Say = Callable[[dict[str, Any]], None]


class Stage:
    """Reports a cell's phases to ``say``, ends it when ``stop`` returns True, and holds the machine lock
    shared while it trains. Where ``pauses`` is False it keeps the lock until it measures."""

    def __init__(
        self, say: Say, stop: Callable[[], bool], lock: MachineLock, *, pauses: bool = True
    ) -> None:
        self.say, self._stop, self._lock, self._pauses = say, stop, lock, pauses
        self._phase = ""
        lock.share(self._tell_waiting, self.check)

    def begin(self, phase: str) -> None:
        """Pause if needed, then begin another phase.

        Raises:
            StoppedError: a stop was requested.
        """
        self.pause()
        self._phase = phase
        self._tell(phase)

    def pause(self) -> None:
        """Wait until no other process measures.

        Raises:
            StoppedError: a stop was requested.
        """
        self.check()
        if self._pauses and self._lock.share(self._tell_waiting, self.check):
            self._tell(self._phase)

    def check(self) -> None:
        """
        Raises:
            StoppedError: a stop was requested.
        """
        if self._stop():
            raise StoppedError

    def stopped(self) -> bool:
        """Pause if needed; return True if a stop was requested."""
        try:
            self.pause()
        except StoppedError:
            return True
        return False

    def _tell_waiting(self) -> None:
        self._tell("waiting for a timing to end")

    def _tell(self, phase: str) -> None:
        self.say({"event": "phase", "phase": phase})
