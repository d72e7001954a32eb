"""``python -m modbench`` is ``modbench``."""

import sys

from modbench.cli import main

sys.exit(main())
