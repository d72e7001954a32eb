"""Fixtures of all tests, and the small shapes on which routing must be right."""

import os
from dataclasses import replace

import pytest
import torch

from modbench.model.config import ModelConfig

#: Fixtures of made-up records, for the tests of several folders.
pytest_plugins = ("made_up_records",)

# Measurements would wait for a quiet machine, which a test run never is.
os.environ.setdefault("MODBENCH_QUIET_SECONDS", "0")
# A second thread slows models this small down, all the more on a busy machine.
torch.set_num_threads(1)

#: Awkward on purpose: odd vocabulary, grouped heads, an untied head, a depth that 2 does not divide.
AWKWARD = ModelConfig(
    vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80, tied_head=False
)
PLAIN = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


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
