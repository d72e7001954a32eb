"""`drive_task.py LIST INDEX`: a task of Slurm, with fake jobs."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import fake_worker

from modbench.sweep import slurm

if __name__ == "__main__":
    fake_worker.install()
    slurm.PATIENCE = float(os.environ.get("FAKE_PATIENCE", slurm.PATIENCE))
    sys.exit(slurm.main(sys.argv[1:]))
