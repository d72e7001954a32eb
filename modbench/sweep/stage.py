"""Where a cell is, and whom it lets go first."""

from collections.abc import Callable
from typing import Any

from modbench.measure.machine_lock import Quiet
from modbench.train.loop import StoppedError

Say = Callable[[dict[str, Any]], None]


class Stage:
    """What a cell is at: ``say`` hears of it, ``stop`` ends it. Between two pieces of work it gives way
    to whoever waits for a ``quiet`` machine; to nobody where that is None."""

    def __init__(self, say: Say, stop: Callable[[], bool], quiet: Quiet | None) -> None:
        self.say, self._stop, self._quiet = say, stop, quiet
        self._phase = ""

    def begin(self, phase: str) -> None:
        """`between`, and then another phase.

        Raises:
            StoppedError: ``stop`` says so.
        """
        self.between()
        self._phase = phase
        self._tell(phase)

    def between(self) -> None:
        """Let those go first who wait for a quiet machine.

        Raises:
            StoppedError: ``stop`` says so.
        """
        self.check()
        if self._quiet is not None and self._quiet.give_way(waits=self._waits, check=self.check):
            self._tell(self._phase)

    def check(self) -> None:
        """Raises:
        StoppedError: ``stop`` says so.
        """
        if self._stop():
            raise StoppedError

    def stopped(self) -> bool:
        """`between`, for who saves something before it stops."""
        try:
            self.between()
        except StoppedError:
            return True
        return False

    def _waits(self) -> None:
        self._tell("waiting for a timing to end")

    def _tell(self, phase: str) -> None:
        self.say({"event": "phase", "phase": phase})
