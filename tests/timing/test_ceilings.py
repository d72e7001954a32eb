"""Ceilings are computed from the best sample, in the reported dtypes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timed_made_up import subject

from modbench.timing import clock
from modbench.timing.stopwatch import Stopwatch, nothing


class Samples(Stopwatch):
    """A stopwatch by which a first run takes 9 s, and the next three 1.0, 0.5 and 2.0 s."""

    def __init__(self) -> None:
        self.runs = 0

    def seconds(self, run: Any, meanwhile: Any = nothing) -> float:
        run()
        meanwhile()
        self.runs += 1
        return (9.0, 1.0, 0.5, 2.0)[(self.runs - 1) % 4]


@pytest.fixture(autouse=True)
def _copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "COPIED", {"cpu": 1000})


def test_a_ceiling_is_two_flops_a_product_and_two_bytes_a_copy_over_the_best_sample() -> None:
    found = clock.ceilings(subject(), Samples())
    for gemm in found["gemm"]:
        products = gemm["rows"] * gemm["inner"] * gemm["columns"]
        assert gemm["flops_per_second"] == 2 * products / 0.5
    assert found["copy_bytes_per_second"] == 2 * 1000 / 0.5


def test_matmuls_run_in_the_reported_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own dtype, and float32."""
    seen: list[tuple[str, str]] = []

    def linear(x_RI: torch.Tensor, weight_CI: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        seen.append((str(x_RI.dtype), str(weight_CI.dtype)))
        return F.linear(x_RI, weight_CI)

    monkeypatch.setattr(clock, "F", SimpleNamespace(linear=linear))
    of = replace(subject(), dtype=torch.bfloat16)
    found = clock.ceilings(of, Samples())
    told = [gemm["dtype"] for gemm in found["gemm"]]
    assert told == ["bfloat16"] * 5 + ["float32"] * 5
    assert seen == [(f"torch.{dtype}",) * 2 for dtype in told for _ in range(4)]
