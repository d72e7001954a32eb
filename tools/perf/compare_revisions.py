"""Benchmarks of this working tree against those of another revision, in fresh processes that take turns:

    python tools/perf/compare_revisions.py --against REVISION [--pairs N] [-k EXPRESSION] [pytest's ...]

The benchmarks are this tree's for both, so that the same is measured; the modbench that they measure is
each tree's own. What looks changed is run again. Exit code 1 if a benchmark became slower (or larger,
where it measures bytes), or is missing: it runs on the other revision and not here, or only the other
revision has it.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from comparison import Comparison, Medians, compare, medians_of

from modbench.sweep.process import ALLOCATOR
from modbench.timing.system_load import SLACK, core_count

BENCHMARKS = "tools/perf/bench_*.py"
#: Short, for it is the medians of whole processes that are compared. Arguments may say otherwise.
SHORT = ("--perf-seconds=2", "--perf-turns=5", "--benchmark-max-time=0.5")


class CompareError(Exception):
    """Nothing can be compared, and why."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A checkout whose modbench is measured by the benchmarks of the checkout ``root``, of them those of
    pytest's -k ``expression``, run with ``words``."""

    name: str
    folder: Path
    root: Path
    expression: str = ""
    words: Sequence[str] = ()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Python in this tree, which comes before an installed modbench here and in what it starts."""
        paths = [str(self.folder), os.environ.get("PYTHONPATH", "")]
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env={**ALLOCATOR, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
            check=False,
        )

    def check(self) -> None:
        """
        Raises:
            CompareError: Python finds another modbench than this tree's.
        """
        found = self.run("-c", "import modbench; print(modbench.__file__)")
        if found.returncode != 0:
            raise CompareError(f"{self.name}: importing modbench failed: {_last(found.stderr)}")
        if not Path(found.stdout.strip()).resolve().is_relative_to(self.folder.resolve()):
            raise CompareError(f"{self.name}: Python found modbench elsewhere, not in that revision")

    def pytest(self, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """With the settings of ``root``."""
        settings = ["-p", "no:cacheprovider", f"--rootdir={root}", "-c", str(root / "pyproject.toml")]
        settings += ["--continue-on-collection-errors", "-k", self.expression]
        return self.run("-m", "pytest", *settings, *words)

    def medians(self, only: Sequence[str] = ()) -> Medians:
        """Of one fresh process that runs all benchmarks, or ``only`` some. Those that fail, or can't be
        imported, aren't among them.

        Raises:
            CompareError: pytest itself failed.
        """
        files = [str(file) for file in sorted(self.root.glob(BENCHMARKS))]
        asked = [str(self.root / name) for name in only] or files
        with tempfile.TemporaryDirectory() as folder:
            json = Path(folder) / "benchmarks.json"
            words = [*SHORT, *self.words, "--benchmark-only", f"--benchmark-json={json}"]
            done = self.pytest(self.root, *asked, *words)
            if done.returncode not in (0, 1, 2, 5):  # 1: a target missed, 2: a file not importable
                raise CompareError(f"{self.name}: pytest failed: {_last(done.stderr or done.stdout)}")
            return medians_of(json)

    def defined(self) -> set[str]:
        """The benchmarks that this tree itself has, whether or not they run.

        Raises:
            CompareError: pytest doesn't understand what is asked for.
        """
        files = [str(file) for file in sorted(self.folder.glob(BENCHMARKS))]
        if not files:
            return set()
        said = self.pytest(self.folder, *files, "-o", "addopts=", "--collect-only", "-q")
        if said.returncode == 4:
            raise CompareError(_last(said.stderr or said.stdout))
        return {line for line in said.stdout.splitlines() if line.startswith("tools/") and "::" in line}


def _last(text: str) -> str:
    """The line of ``text`` that says what is wrong, or else its last one."""
    lines = text.strip().splitlines() or ["it said nothing"]
    return [lines[-1], *(line for line in lines if "error: " in line.lower())][-1]


@contextmanager
def checked_out(root: Path, revision: str) -> Iterator[Path]:
    """A work tree of ``revision``, gone again afterwards.

    Raises:
        CompareError: git knows no such revision.
    """

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        made = git("worktree", "add", "--detach", str(tree), revision)
        if made.returncode != 0:
            raise CompareError(f"git can't check out {revision}: {_last(made.stderr)}")
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def in_pairs(
    before: Tree, after: Tree, pairs: int, only: Sequence[str] = ()
) -> tuple[list[Medians], list[Medians]]:
    """Fresh processes of both trees: before, after, after, before, and so on."""
    found: dict[str, list[Medians]] = {before.name: [], after.name: []}
    started = time.monotonic()
    for pair in range(pairs):
        for place, tree in enumerate((before, after) if pair % 2 == 0 else (after, before)):
            found[tree.name].append(tree.medians(only))
            done = 2 * pair + place + 1
            left = (time.monotonic() - started) / done * (2 * pairs - done)
            print(f"{done} of {2 * pairs} processes, {left:.0f} s left", file=sys.stderr, flush=True)
    return found[before.name], found[after.name]


def compare_with(
    root: Path, revision: str, pairs: int, expression: str = "", words: Sequence[str] = ()
) -> Comparison:
    """The working tree ``root`` against its ``revision``.

    Raises:
        CompareError: no such revision, or no benchmark runs on either.
    """
    load, cores = os.getloadavg()[0], core_count()
    if load > cores * (1 + SLACK):
        print(
            f"the machine is busy: its load is {load:.1f} and it has {cores} cores; what looks the same "
            "may not be",
            file=sys.stderr,
            flush=True,
        )
    with checked_out(root, revision) as folder:
        before, after = (
            Tree(name=name, folder=tree, root=root, expression=expression, words=words)
            for name, tree in ((revision, folder), ("the working tree", root))
        )
        for tree in (before, after):
            tree.check()
        earlier, here = before.defined(), after.defined()
        if not here:
            raise CompareError("no benchmark is asked for; leave -k out, or see nox -s perf -- --co")
        first = compare(*in_pairs(before, after, pairs), earlier, here)
        if not (first.changes or first.new or first.here_alone or first.missing):
            raise CompareError(f"no benchmark ran, here or in {revision}; nox -s perf says why")
        if not first.changed:
            return first
        print(f"{len(first.changed)} look changed and are run again", file=sys.stderr, flush=True)
        again = compare(*in_pairs(before, after, pairs, first.changed))
        return replace(first, again=again.changes)


def main(words: Sequence[str] | None = None, root: Path | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--against", required=True, metavar="REVISION")
    parser.add_argument("--pairs", type=int, default=5, help="processes of each (default: 5)")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="some benchmarks, as pytest's -k")
    asked, further = parser.parse_known_args(words)
    if asked.pairs < 2:
        parser.error(f"--pairs is {asked.pairs}; it must be 2 or more")
    # SIGTERM ends this like Ctrl-C, so that the other revision's work tree is removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        root = Path(__file__).parents[2] if root is None else root
        comparison = compare_with(root, asked.against, asked.pairs, asked.k, further)
    except CompareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was compared", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    once = math.comb(2 * asked.pairs, asked.pairs) // 2
    print(
        f"{asked.against} -> working tree, {asked.pairs} pairs of processes; equal revisions "
        f"differ by chance once in {once}"
    )
    for line in comparison.lines():
        print(line)
    return int(comparison.failed)


if __name__ == "__main__":
    sys.exit(main())
