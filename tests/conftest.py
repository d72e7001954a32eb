"""Fixtures of all tests, and the small shapes on which routing must be right."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from inline import inline_workers, own_routers, processes

from modbench.analysis import isoflop
from modbench.model.config import ModelConfig
from modbench.report import plot_style
from modbench.timing import system_load

#: Fixtures of made-up records, for the tests of several folders.
pytest_plugins = ("made_up_records",)

# Measurements would wait for a quiet machine, which a test run never is.
os.environ.setdefault("MODBENCH_QUIET_SECONDS", "0")
system_load.QUIET_SECONDS = 0.0  # it has been imported already
# Caches of this run of the tests, shared by its processes: nothing is under the home folder, where
# locks would make other commands wait.
CACHES = Path(
    tempfile.gettempdir(), f"modbench-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
)
for _name in ("MODBENCH_CACHE", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"):
    os.environ[_name] = str(CACHES / _name.lower())
if os.environ.get("MODBENCH_TESTS_MISALIGNED"):
    from misaligned import misalign_tensors_of_files

    misalign_tensors_of_files()
# A second thread slows models this small down, all the more on a busy machine.
torch.set_num_threads(1)

#: Awkward on purpose: odd vocabulary, grouped heads, an untied head, a depth that 2 does not divide,
#: norms of queries and keys.
AWKWARD = ModelConfig(
    vocabulary=301,
    width=48,
    layers=3,
    heads=6,
    kv_heads=2,
    mlp="gelu",
    mlp_width=80,
    tied_head=False,
    qk_norm=True,
)
PLAIN = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.get_closest_marker("processes"))  # the longest, first


@pytest.fixture(params=[pytest.param(PLAIN, marks=pytest.mark.full), AWKWARD], ids=["plain", "awkward"])
def shape(request: pytest.FixtureRequest) -> ModelConfig:
    """The small shapes, with more layers for the scheme that shares layers."""
    if request.node.callspec.params.get("name") == "mixture_of_recursions":
        return replace(request.param, layers=4)
    return request.param


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pytest-xdist from processes that tests start; in its workers nothing is timed."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _inline_workers() -> Iterator[None]:
    with inline_workers():
        yield


@pytest.fixture(autouse=True)
def _processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Jobs of commands are done in the test's process, except in tests marked ``processes``."""
    with processes() if request.node.get_closest_marker("processes") else own_routers():
        yield


@pytest.fixture(autouse=True)
def _no_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Files of figures are empty, except in tests marked ``figures``."""
    empty = lambda name, _, png: {f"{name}.{end}": b"" for end in (*["png"] * png, "svg")}  # noqa: E731
    drawn = request.node.get_closest_marker("figures")
    with nullcontext() if drawn else patch.object(plot_style, "_files", empty):
        yield


@pytest.fixture(autouse=True)
def _few_draws() -> Iterator[None]:
    """Intervals are made from few draws of the noise; tests of intervals override this."""
    with patch.object(isoflop, "DRAWS", 500), patch.object(isoflop, "DRAWS_OF_DEPTHS", 500):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write the golden files of tests/report")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(CACHES, ignore_errors=True)
