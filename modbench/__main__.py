"""``python -m modbench`` is ``modbench``."""

import sys


def main() -> int:
    """As `modbench.cli.main.main`; who stops it while it is loaded is told so, too."""
    try:
        from modbench.cli.main import main as verbs
    except KeyboardInterrupt:
        print("modbench: stopped", file=sys.stderr)
        return 130
    return verbs()


if __name__ == "__main__":
    sys.exit(main())
