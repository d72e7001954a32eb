"""``python -m modbench`` is ``modbench``."""

import sys

from modbench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
