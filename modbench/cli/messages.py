"""Messages on stderr."""

import sys


def tell(text: str) -> None:
    """Print ``text`` on stderr."""
    print(f"modbench: {text}", file=sys.stderr, flush=True)
