"""Messages on stderr."""

import sys

from modbench.errors import printable


def tell(text: str) -> None:
    """Print ``text`` on stderr."""
    print(f"modbench: {printable(text)}", file=sys.stderr, flush=True)
