"""Puts each bug of mutants.toml into a copy of the package; writes to mutants.csv which test finds it.

    python tools/run_mutants.py [ID ...]

The copy has the tracked files with their uncommitted changes. A bug is killed if a test fails with it
and passes without it. The bug's own tests run first, then all of its room. Exits with 1 if one survives.
"""

import csv
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUGS, TABLE = (ROOT / "tools" / f"mutants.{kind}" for kind in ("toml", "csv"))
#: Longest run of pytest in seconds: several times that of the slowest file that a bug names.
LIMIT = float(os.environ.get("MUTANT_SECONDS", "300"))
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "--benchmark-disable"]
PYTEST += ["-p", "no:cacheprovider", "-m", "not full and not slow"]
#: With warnings as errors, its report of a failed property may end pytest instead of the test.
PYTEST += ["-p", "no:hypothesispytest"]
BY_TIME = "time limit"


def first_failure(copy: Path, tests: list[str]) -> str:
    """Run ``tests`` in ``copy``; return the first that fails, `BY_TIME`, or an empty string."""
    with tempfile.TemporaryDirectory() as cache:  # a bug may leave wrong files in it
        environment = os.environ | {"PYTHONPATH": str(copy), "MODBENCH_CACHE": cache}
        pytest = subprocess.Popen(
            [*PYTEST, *tests],
            cwd=copy,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = pytest.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(pytest.pid, signal.SIGKILL)
            pytest.communicate()
            return BY_TIME
    failed = re.search(r"^(?:FAILED|ERROR) ([^\s\[]+)", output, re.MULTILINE)
    if failed is None and pytest.returncode not in (0, 4, 5):  # 4, 5: the test is gone, or not selected
        raise SystemExit(f"pytest {' '.join(tests)} ended with {pytest.returncode}:\n{output}")
    return failed[1] if failed else ""


def verdict(copy: Path, bug: dict) -> tuple[str, str]:
    """Return ``yes``, ``no``, or ``gone`` if there is no such line; and the test that finds the bug."""
    paths = [copy / bug["file"], *sorted((copy / "modbench").rglob("*.py"))]  # code may have moved
    texts = {path: path.read_text() for path in paths if path.exists()}
    line = re.compile(rf"^( *){re.escape(bug['old'])}$", re.MULTILINE)
    path = next((path for path, text in texts.items() if line.search(text)), None)
    if path is None:
        return "gone", ""
    own = [test for test in bug["tests"] if (copy / test.partition("::")[0]).exists()]
    room = [f"tests/{Path(bug['file']).parts[1]}"]
    for tests in (own, room) if own else (room,):
        path.write_text(line.sub(lambda found: found[1] + bug["new"], texts[path], count=1))
        try:
            test = first_failure(copy, tests)
        finally:
            path.write_text(texts[path])
        if test == BY_TIME:  # a room may take longer than the limit without any bug
            return ("no" if tests is room else "yes"), BY_TIME
        if test and not first_failure(copy, [test]):
            return "yes", test
    return "no", ""


def main(ids: list[str]) -> int:
    bugs = tomllib.loads(BUGS.read_text())["mutant"]
    rows = {}
    if TABLE.exists():
        rows = {row["id"]: row for row in csv.DictReader(TABLE.read_text().splitlines())}
    with tempfile.TemporaryDirectory() as copy:
        changes = subprocess.check_output(["git", "stash", "create"], cwd=ROOT, text=True).strip()
        files = subprocess.check_output(["git", "archive", changes or "HEAD"], cwd=ROOT)
        subprocess.run(["tar", "-x", "-C", copy], input=files, check=True)
        for bug in (of for of in bugs if not ids or of["id"] in ids):
            begun = time.monotonic()
            killed, by = verdict(Path(copy), bug)
            rows[bug["id"]] = {"id": bug["id"], "killed": killed, "by": by}
            print(f"{bug['id']:<20} {killed:<5}{time.monotonic() - begun:>5.0f} s  {by}", flush=True)
            with TABLE.open("w", newline="") as file:
                table = csv.DictWriter(file, ["id", "killed", "by"], lineterminator="\n")
                table.writeheader()
                table.writerows(rows[of["id"]] for of in bugs if of["id"] in rows)
    return int(any(row["killed"] == "no" for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
