"""Benchmarks wait for the GPU where there is one, take turns, and have targets: what each reached is
said at the end. Results that pytest-benchmark keeps lie in a folder of this kind of machine's."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interleaved import InTurns
from pytest_benchmark.fixture import BenchmarkFixture
from targets import HEADER, Reach, Target

from modbench.measure.environment import environment
from modbench.train.numerics import make_deterministic

# For the trained runs that bench_downstream makes.
sys.path.append(str(Path(__file__).parents[2] / "tests"))
# Measurements would wait for a quiet machine; benchmarks take turns instead.
os.environ.setdefault("MODBENCH_QUIET_SECONDS", "0")
torch.set_num_threads(1)

TARGETS, LOADED = pytest.StashKey[list[Target]](), pytest.StashKey[list[str]]()
#: Defaults of pytest-benchmark.
USUAL_TIMER, USUAL_STORAGE = "time.perf_counter", "file://./.benchmarks"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("modbench")
    group.addoption(
        "--perf-seconds",
        type=float,
        default=20.0,
        help="how long the ways of a benchmark take turns (default: %(default)g)",
    )
    group.addoption("--perf-turns", type=int, default=10, help="turns at least (default: %(default)d)")
    group.addoption("--perf-threads", type=int, default=2, help="threads (default: %(default)d)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TARGETS], config.stash[LOADED] = [], []
    if config.option.benchmark_timer == USUAL_TIMER:
        config.option.benchmark_timer = "interleaved.now"
    if config.option.benchmark_storage == USUAL_STORAGE:
        folder = config.rootpath / ".benchmarks" / machine_name()
        config.option.benchmark_storage = f"file://{folder}"


def machine() -> dict[str, Any]:
    """The parts of the machine that times depend on, without host and user names."""
    names = ("cpu", "cores", "gpu", "torch", "python", "system")
    known = environment(torch.float32)
    return {name: known[name] for name in names}


def machine_name() -> str:
    """A folder's name for machines of this kind."""
    known = machine()
    words = f"{known['cpu']} {known['cores']} cores {known['gpu'] or ''}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    return machine() | {"threads": config.getoption("--perf-threads")}


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


@pytest.fixture
def reach(request: pytest.FixtureRequest) -> Iterator[Reach]:
    """Targets of the benchmark, printed at the end; one that is missed fails it."""
    reach = Reach()
    yield reach
    request.config.stash[TARGETS] += reach.targets
    if reach.missed():
        pytest.fail(reach.missed(), pytrace=False)


@pytest.fixture
def as_in_a_cell(request: pytest.FixtureRequest) -> Iterator[None]:
    """Use the given number of threads, and the determinism of runs."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(request.config.getoption("--perf-threads"))
    make_deterministic()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def in_turns(
    benchmark: BenchmarkFixture, request: pytest.FixtureRequest, as_in_a_cell: None
) -> Iterator[InTurns]:
    """Times ways in turns."""
    config = request.config
    in_turns = InTurns(
        benchmark,
        seconds=config.getoption("--perf-seconds"),
        turns=config.getoption("--perf-turns"),
    )
    yield in_turns
    if in_turns.loaded:
        config.stash[LOADED].append(request.node.name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    loaded = ", ".join(config.stash[LOADED])
    if loaded:
        terminalreporter.section("timed while other work used the machine: more threads than cores")
        terminalreporter.line(loaded)
    targets = config.stash[TARGETS]
    if not targets:
        return
    terminalreporter.section("targets")
    terminalreporter.line(HEADER)
    for target in targets:
        terminalreporter.line(str(target))
    missed = sum(not target.reached for target in targets)
    asked = sum(target.bound is not None for target in targets)
    terminalreporter.line(f"{asked - missed} of {asked} targets reached")
