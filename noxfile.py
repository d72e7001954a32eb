"""Sessions for tests, lint, benchmarks and pages. They share one environment, since PyTorch is large.

In an environment that has all dependencies: nox --no-venv --no-install -s SESSION
"""

import hashlib
import os
import shutil
import sys
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.2"
nox.options.sessions = ["tests", "lint", "flops", "results"]
# Nox makes one environment per session; `ready` makes one for all.
nox.options.default_venv_backend = "none"

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".nox"
#: The lower bound of PyTorch in pyproject.toml.
OLDEST = "torch==2.11.*"
#: Each test process runs one thread and needs up to 2 GB.
PARALLEL = ["--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal", "--benchmark-disable"]
REPORT = ["modbench", "report", "--results=results", "--submissions=submissions"]
#: What makes this processor round as others do; the last moves tensors of files off the cache line.
PROCESSORS = (
    "OPENBLAS_CORETYPE=HASWELL",
    "MKL_CBWR=COMPATIBLE",
    "MKL_CBWR=AVX2",
    "ATEN_CPU_CAPABILITY=default",
    "MODBENCH_TESTS_MISALIGNED=1",
)
#: Debian's packages of Slurm and munge, and what they need besides the usual libraries.
SLURM = ["slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2"]
SLURM += ["libhwloc15"]


def ready(
    session: nox.Session,
    name: str = "modbench",
    further: Sequence[str] = (),
    project: str = "[dev]",
) -> str:
    """Create or update the environment ``name`` with modbench, its extras ``project`` and ``further``
    packages, and return its Python; with --no-venv, return the Python that runs nox."""
    if "--no-venv" in sys.argv:
        return sys.executable
    environment = ENVIRONMENTS / name
    python = environment / "bin" / "python"
    stamp = environment / "installed"
    versions = (HERE / "pyproject.toml").read_bytes()
    asked = "".join((sys.version, str(HERE), project, *further)).encode()
    wanted = hashlib.sha256(versions + asked).hexdigest()
    if not python.exists() or not stamp.exists() or stamp.read_text() != wanted:
        stamp.unlink(missing_ok=True)
        session.run(sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(environment))
        session.log(
            f"installing modbench into {environment}, with PyTorch: pip prints what it collects, and "
            "then nothing for some minutes while it unpacks"
        )
        install = [str(python), "-m", "pip", "install"]  # not quiet: it takes minutes
        session.run(*install, "--editable", f"{HERE}{project}")
        if further:  # some of them need installed packages to build
            session.run(*install, "--no-build-isolation", *further, env={"DS_BUILD_OPS": "0"})
        stamp.write_text(wanted)
    return str(python)


def module(session: nox.Session, *words: str) -> None:
    """python -m ``words``, with the tools of developers."""
    session.run(ready(session), "-m", *words)


def for_users(session: nox.Session) -> str:
    """The Python of the environment of benchmarks, which has no developer's tools."""
    return ready(session, "bench", project="")


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests except the full matrix, on up to four cores; arguments after -- go to pytest."""
    module(session, "pytest", *PARALLEL, "-m", "not full and not slow", *session.posargs)


@nox.session(name="tests-full")
@nox.parametrize("version", ["newest", "oldest"], ids=["newest", "oldest"])
def tests_full(session: nox.Session, version: str) -> None:
    """Run all tests and the full matrix, with the newest and the oldest supported PyTorch; arguments
    after -- go to pytest."""
    python = ready(session, "oldest", [OLDEST]) if version == "oldest" else ready(session)
    session.run(python, "-m", "pytest", *PARALLEL, *session.posargs)


@nox.session(name="tests-processors")
@nox.parametrize("variable", PROCESSORS, ids=PROCESSORS)
def tests_processors(session: nox.Session, variable: str) -> None:
    """Run all tests except the full matrix as other processors round; arguments after -- go to
    pytest."""
    name, _, value = variable.partition("=")
    words = (*PARALLEL, "-m", "not full and not slow", *session.posargs)
    session.run(ready(session), "-m", "pytest", *words, env={name: value})


@nox.session
def browser(session: nox.Session) -> None:
    """Test the pages of `modbench report --html` in the machine's Chromium; arguments after -- go to
    pytest."""
    python = ready(session, "browser", project="[dev,browser]")
    session.run(python, "-m", "pytest", "tests/browser", *session.posargs)


@nox.session(name="tests-cuda")
def tests_cuda(session: nox.Session) -> None:
    """Run every scheme's training step, prefill and decoding on fake CUDA tensors, without a GPU;
    arguments after -- go to pytest. Skipped without a C++ compiler, or where PyTorch is another build or
    version than tests/cuda/no_card.cpp was written for."""
    # The CPU build has a local version, which pip prefers; the default one has CUDA's own device guard.
    session.env["PIP_EXTRA_INDEX_URL"] = "https://download.pytorch.org/whl/cpu"
    python = ready(session, "cuda", ["torch==2.13.*"])
    session.run(python, "tests/cuda/no_card.py", *PARALLEL, *session.posargs)


@nox.session(name="tests-cluster")
def tests_cluster(session: nox.Session) -> None:
    """Run suites on a real Slurm of one node and a local Ray cluster of two; arguments after -- go to
    pytest. Slurm is this machine's, or unpacked from Debian's packages without installation; without
    either, its tests are skipped."""
    python = ready(session, "cluster", project="[dev,ray]")
    found = shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin")
    unpacked = {} if found else unpacked_slurm(session)
    session.run(python, "-m", "pytest", "tests/cluster", "-rs", *session.posargs, env=unpacked)


def unpacked_slurm(session: nox.Session) -> dict[str, str]:
    """The environment variable with the folder of Debian's packages, which are fetched once; none
    without apt-get."""
    folder = ENVIRONMENTS / "slurm"
    if not (folder / "usr").exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            return {}
        folder.mkdir(parents=True, exist_ok=True)
        with session.chdir(folder):
            session.run("apt-get", "download", *SLURM, external=True)
            for package in sorted(folder.glob("*.deb")):
                session.run("dpkg-deb", "-x", str(package), str(folder), external=True)
    return {"MODBENCH_SLURM": str(folder)}


@nox.session
def lint(session: nox.Session) -> None:
    """Check formatting, lint and types."""
    module(session, "ruff", "format", "--check", ".")
    module(session, "ruff", "check", ".")
    module(session, "mypy")


@nox.session
def flops(session: nox.Session) -> None:
    """Compare every router's FLOPs with the committed table; arguments after -- go to the gate."""
    module(session, "modbench", "flops", "gate", *session.posargs)


def reported() -> list[str]:
    """The suites with a committed table."""
    return sorted(page.parent.name for page in HERE.glob("results/*/leaderboard.md"))


@nox.session
def results(session: nox.Session) -> None:
    """Compare the committed tables, pages and figures of each suite with what its records give, and
    train a committed run again."""
    module(session, *REPORT, *reported(), "--check")
    # Another processor rounds differently, so that losses may differ a little.
    words = ("quick/vanilla#0", "--results", "results", "--within", "0.3")
    module(session, "modbench", "verify", *words)


@nox.session
def board(session: nox.Session) -> None:
    """Write the tables, pages and figures of the board again, with the rows of submissions/."""
    module(session, *REPORT, "board", "--html")


@nox.session
def submission(session: nox.Session) -> None:
    """Check the submissions in the folders named after --. Their code runs: read it first."""
    python, refused = ready(session), []
    for folder in session.posargs:
        with suppress(OSError, ValueError, KeyError):  # check-submission says what is wrong
            text = (HERE / folder / "submission.toml").read_text(encoding="utf-8")
            package = str(tomllib.loads(text)["package"])
            session.run(python, "-m", "pip", "install", "--quiet", "--", package)
        try:
            session.run(python, "-m", "modbench", "check-submission", folder)
        except CommandFailed:
            refused.append(folder)
    if refused:
        session.error(f"refused: {', '.join(refused)}")


@nox.session
def rehearse(session: nox.Session) -> None:
    """Rehearse each shipped suite, or those named after --: two steps of the smallest run of each
    scheme, FLOPs and memory of the largest."""
    for name in session.posargs or sorted(path.stem for path in HERE.glob("suites/*.toml")):
        words = ("run", f"suites/{name}.toml", "--rehearse", "--results", "my-results")
        module(session, "modbench", *words)


@nox.session
def pages(session: nox.Session) -> None:
    """Write what pages take from code and results (keys, options, tables, conventions, audit) and the
    figures; arguments after -- go to tools/pages: --check only compares, names of parts choose. The
    audit takes minutes."""
    session.run(ready(session), "tools/pages", *session.posargs)
    check = [word for word in session.posargs if word == "--check"]
    session.run(ready(session), "tools/figures.py", *check)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site of docs/ and the pages of the suites into build/docs/html; a warning is an error.
    Arguments after -- go to sphinx-build."""
    module(session, *REPORT, *reported(), "--html")
    words = ["-W", "--keep-going", "-d", "build/docs/doctrees", *session.posargs]
    module(session, "sphinx", *words, "docs", "build/docs/html")


@nox.session
def perf(session: nox.Session) -> None:
    """Compare kernels, layers, steps, decoding, memory, the harness and counting with their targets;
    arguments after -- go to pytest."""
    session.run(ready(session), "tools/perf/run_benchmarks.py", *session.posargs)


def suite(session: nox.Session, verb: str, name: str, results: str, words: Sequence[str]) -> None:
    """Run modbench ``verb`` on a shipped suite; write to ``results``/ unless ``words`` has --results."""
    if "--results" not in words:
        words = [*words, "--results", results]
    session.run(for_users(session), "-m", "modbench", verb, f"suites/{name}.toml", *words)


def of_training(words: Sequence[str]) -> list[str]:
    """Remove the options of modbench time that modbench run does not have."""
    kept, left = [], iter(words)
    for word in left:
        if word == "--repetitions":
            next(left, None)
        elif word != "--again" and not word.startswith("--repetitions="):
            kept.append(word)
    return kept


@nox.session
def bench(session: nox.Session) -> None:
    """Train and measure the quick suite in my-results/ and compare it with the committed table;
    arguments after -- go to modbench run."""
    suite(session, "run", "quick", "my-results", session.posargs)
    if "--results" not in session.posargs:
        compare = ("compare", "results/quick", "my-results/quick")
        session.run(for_users(session), "-m", "modbench", *compare)


@nox.session(name="bench-gpu")
def bench_gpu(session: nox.Session) -> None:
    """Measure time and memory of the gpu suite's schemes on a GPU, then train them, in my-results-gpu/;
    arguments after -- go to modbench time, and to modbench run where it has the option."""
    try:
        session.run(for_users(session), "-m", "modbench", "doctor", "--gpu")
    except CommandFailed:
        session.error("bench-gpu can't measure on this machine (see above); on a CPU run: nox -s bench")
    if "--no-venv" not in sys.argv:
        # Clocks, throttling and energy; without it they are empty in the timings.
        session.run(for_users(session), "-m", "pip", "install", "nvidia-ml-py")
    timed = True
    try:
        suite(session, "time", "gpu", "my-results-gpu", session.posargs)
    except CommandFailed as failure:
        if failure.reason != "Returned code 1":  # refused, or stopped by the user
            raise
        timed = False  # one scheme could not be timed; the others are trained
    suite(session, "run", "gpu", "my-results-gpu", of_training(session.posargs))
    if not timed:
        session.error("modbench time failed (see its message above); training succeeded")
