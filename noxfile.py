"""Every job of this repository, each with its own set-up. Sessions share one environment: torch is big.

In an environment that already has everything: nox --no-venv --no-install -s SESSION
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.2"
nox.options.sessions = ["tests", "lint", "flops"]
# Nox has one environment to each session; ours is made below, once.
nox.options.default_venv_backend = "none"

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".nox"
#: The lower bound of PyTorch in pyproject.toml.
OLDEST = "torch==2.11.*"
VERSIONS = ["newest", "oldest", "next-lm-eval"]
#: The pre-release of lm-eval, whose rolling requests and results differ, and the tests to run with it.
NEXT_LM_EVAL = "lm-eval==0.5.0.dev1"
LM_EVAL_TESTS = [
    "tests/measure/test_downstream_lm.py",
    "tests/measure/test_downstream_score.py",
    "tests/measure/test_evaluation.py",
    "tests/measure/test_hub_lm.py",
    "tests/measure/test_routed_scoring.py",
    "tests/cli/test_eval.py",
]
#: Tests keep to one thread each, and a process of them grows to 2 GB.
PARALLEL = ["--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"]
#: Installed apart, since some change what they touch.
OTHER_COUNTERS = ["deepspeed", "calflops", "accelerate", "ptflops", "thop", "torchinfo"]


def ready(session: nox.Session, name: str = "modbench", further: Sequence[str] = ()) -> str:
    """The Python to run: that of the environment ``name``, made or brought up to date first, with
    ``further`` packages; with --no-venv the one that runs nox."""
    if "--no-venv" in sys.argv:
        return sys.executable
    environment = ENVIRONMENTS / name
    python = environment / "bin" / "python"
    stamp = environment / "installed"
    project = (HERE / "pyproject.toml").read_bytes()
    asked = "".join((sys.version, str(HERE), *further)).encode()
    wanted = hashlib.sha256(project + asked).hexdigest()
    if not python.exists() or not stamp.exists() or stamp.read_text() != wanted:
        stamp.unlink(missing_ok=True)
        session.run(sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(environment))
        install = [str(python), "-m", "pip", "install", "--quiet"]
        session.run(*install, "--editable", f"{HERE}[dev]")
        if further:  # some of them need what is there by now to build
            session.run(*install, "--no-build-isolation", *further, env={"DS_BUILD_OPS": "0"})
        stamp.write_text(wanted)
    return str(python)


def module(session: nox.Session, *words: str) -> None:
    """python -m ``words``."""
    session.run(ready(session), "-m", *words)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but the full matrix, on up to four cores; arguments after -- go to pytest."""
    module(session, "pytest", *PARALLEL, "-m", "not full and not slow", *session.posargs)


@nox.session(name="tests-full")
@nox.parametrize(
    "version", ["newest", "oldest", "next-lm-eval"], ids=["newest", "oldest", "next-lm-eval"]
)
def tests_full(session: nox.Session, version: str) -> None:
    """All tests and the full matrix, with the newest and with the oldest PyTorch that is supported, and
    those of evaluation with the pre-release of lm-eval; arguments after -- go to pytest."""
    if version == "next-lm-eval":
        python = ready(session, version, [NEXT_LM_EVAL])
        session.run(python, "-m", "pytest", *PARALLEL, *LM_EVAL_TESTS, *session.posargs)
        return
    python = ready(session, "oldest", [OLDEST]) if version == "oldest" else ready(session)
    session.run(python, "-m", "pytest", *PARALLEL, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint, types."""
    module(session, "ruff", "format", "--check", ".")
    module(session, "ruff", "check", ".")
    module(session, "mypy")


@nox.session
def flops(session: nox.Session) -> None:
    """Hold every router's FLOPs against the committed table; arguments after -- go to the gate."""
    module(session, "modbench", "flops", "gate", *session.posargs)
    if not session.posargs:
        session.run(ready(session), "tests/accounting/conventions_page.py", "--check")


@nox.session
def audit(session: nox.Session) -> None:
    """Audit every router, preset and known bug, into docs/audit.md; arguments after -- go to the
    script (--check only compares)."""
    session.run(ready(session), "tests/measure/audit_page.py", *session.posargs)


@nox.session
def perf(session: nox.Session) -> None:
    """Time kernels, layers, steps, decoding, memory, the harness and the counting, against their
    targets; arguments after -- go to pytest. With --against REVISION, compare with that instead."""
    against = any(word.startswith("--against") for word in session.posargs)
    script = "compare_revisions" if against else "run_benchmarks"
    session.run(ready(session), f"tests/perf/{script}.py", *session.posargs)


@nox.session
def counters(session: nox.Session) -> None:
    """Count cases of known cost with every counter that can be installed, into docs/counters.md;
    arguments after -- go to the script (--check only compares)."""
    python = ready(session, "counters", OTHER_COUNTERS)
    session.run(python, "tests/counting/compare_counters.py", *session.posargs)


def suite(session: nox.Session, verb: str, name: str, results: str, words: Sequence[str]) -> None:
    """modbench ``verb`` of suites/``name``.toml, into ``results``/ unless ``words`` say where."""
    if "--results" not in words:
        words = [*words, "--results", results]
    module(session, "modbench", verb, f"suites/{name}.toml", *words)


def of_training(words: Sequence[str]) -> list[str]:
    """``words`` for modbench time without those that modbench run doesn't know."""
    kept, left = [], iter(words)
    for word in left:
        if word == "--repetitions":
            next(left, None)
        elif word != "--again" and not word.startswith("--repetitions="):
            kept.append(word)
    return kept


@nox.session
def bench(session: nox.Session) -> None:
    """Train and measure the quick suite, into my-results/; arguments after -- go to modbench run."""
    suite(session, "run", "quick", "my-results", session.posargs)


@nox.session(name="bench-gpu")
def bench_gpu(session: nox.Session) -> None:
    """Time the gpu suite's schemes on a GPU and weigh them, then train them for a short while, into
    my-results-gpu/; arguments after -- go to modbench time, and those that it knows to modbench run."""
    code = "import torch; print(torch.cuda.is_available())"
    if "True" not in str(session.run(ready(session), "-c", code, silent=True)):
        session.error("bench-gpu needs a CUDA GPU and PyTorch finds none; on a CPU run: nox -s bench")
    if "--no-venv" not in sys.argv:
        # Clocks, throttling and energy; an environment that lacks it says so in its timings.
        session.run(ready(session), "-m", "pip", "install", "--quiet", "nvidia-ml-py")
    timed = True
    try:
        suite(session, "time", "gpu", "my-results-gpu", session.posargs)
    except CommandFailed as failure:
        if failure.reason != "Returned code 1":  # refused, or stopped by hand
            raise
        timed = False  # a scheme that can't be timed is no reason not to train the others
    suite(session, "run", "gpu", "my-results-gpu", of_training(session.posargs))
    if not timed:
        session.error("modbench time failed, as it says above; the training went well")
