"""``python -m modbench`` is ``modbench``."""

import sys

from modbench.cli.main import run

main = run

if __name__ == "__main__":
    sys.exit(run())
