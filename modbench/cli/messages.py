"""Messages on stderr."""

import io
import os
import sys

from modbench.errors import printable


class Messages(io.TextIOWrapper):
    """Standard error; once it can't be written, what follows is lost, and the command goes on."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return self._lost(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._lost("")

    def _lost(self, text: str) -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        return len(text)


def tell(text: str) -> None:
    """Print ``text`` on stderr."""
    print(f"modbench: {printable(text)}", file=sys.stderr, flush=True)
