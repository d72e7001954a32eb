"""`drive_task.py LIST INDEX`: `python -m modbench.sweep.task` with the fake worker."""

import sys

from drive_engine import FAKE

from modbench.sweep import task, worker

if __name__ == "__main__":
    worker.COMMAND = FAKE
    sys.exit(task.main(sys.argv[1:]))
