"""All benchmarks, in a process that gets memory as runs do; arguments go to pytest."""

import os
import sys
from pathlib import Path

from modbench.sweep.process import ALLOCATOR

ROOT = Path(__file__).parents[2]


def main(words: list[str]) -> None:
    # No tests: pytest finds these only by name.
    files = [str(file) for file in sorted(ROOT.glob("tools/perf/bench_*.py"))]
    columns = "--benchmark-columns=min,median,iqr,rounds"
    command = [sys.executable, "-m", "pytest", *files, "--benchmark-only", columns, *words]
    # The C library reads its settings when a process begins.
    os.execve(sys.executable, command, {**ALLOCATOR, **os.environ})


if __name__ == "__main__":
    main(sys.argv[1:])
