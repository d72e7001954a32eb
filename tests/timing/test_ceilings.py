"""Ceilings are computed from the median sample, in the reported dtypes, with one output buffer."""

from dataclasses import replace
from typing import Any
from weakref import WeakSet

import pytest
import torch
from timed_made_up import Ticking, subject
from torch.utils._python_dispatch import TorchDispatchMode

from modbench.timing import clock
from modbench.timing.stopwatch import Stopwatch, nothing


class Samples(Stopwatch):
    """A stopwatch by which a first sample takes 9 s, and the next three 1.0, 0.5 and 2.0 s."""

    def __init__(self) -> None:
        self.rows = 0

    def in_a_row(self, run: Any, runs: int, meanwhile: Any = nothing) -> float:
        run()
        meanwhile()
        self.rows += 1
        return (9.0, 1.0, 0.5, 2.0)[(self.rows - 1) % 4]


@pytest.fixture(autouse=True)
def _copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "COPIED", {"cpu": 1000})


def test_a_ceiling_is_two_flops_a_product_and_two_bytes_a_copy_over_the_median_sample() -> None:
    found = clock.ceilings(subject(), Samples())
    for gemm in found["gemm"]:
        products = gemm["rows"] * gemm["inner"] * gemm["columns"]
        assert gemm["flops_per_second"] == 2 * products / 1.0
    assert found["copy_bytes_per_second"] == 2 * 1000 / 1.0


def test_matmuls_run_in_the_reported_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own dtype, and float32."""
    seen: list[tuple[str, str]] = []
    right = torch.mm

    def mm(x_RI: torch.Tensor, weight_IC: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        seen.append((str(x_RI.dtype), str(weight_IC.dtype)))
        return right(x_RI, weight_IC, out=out)

    monkeypatch.setattr(torch, "mm", mm)
    of = replace(subject(), dtype=torch.bfloat16)
    found = clock.ceilings(of, Samples())
    told = [gemm["dtype"] for gemm in found["gemm"]]
    assert told == ["bfloat16"] * 5 + ["float32"] * 5
    assert seen == [(f"torch.{dtype}",) * 2 for dtype in told for _ in range(4)]


class Peak(TorchDispatchMode):
    """Notes the most rows of a matmul, and the most results that were alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.alive, self.most = 0, WeakSet[torch.UntypedStorage](), 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if op.overloadpacket is torch.ops.aten.mm:
            self.rows = max(self.rows, len(result))
            self.alive.add(result.untyped_storage())
            self.most = max(self.most, len({storage.data_ptr() for storage in self.alive}))
        return result


@pytest.mark.parametrize(("batch", "micro_batch", "rows"), [(4, 1, 32), (6, 3, 96), (4, None, 128)])
def test_ceilings_hold_one_result_with_the_rows_of_a_pass(
    batch: int, micro_batch: int | None, rows: int
) -> None:
    """Not of the batch, and not one result for each matmul of a sample."""
    of = subject()
    of = replace(of, train=replace(of.train, batch=batch, micro_batch=micro_batch))
    with Peak() as peak:
        found = clock.ceilings(of, Ticking(clock.CEILING_SECONDS["cpu"] / 4))
    assert {gemm["rows"] for gemm in found["gemm"]} == {rows} == {peak.rows}
    assert peak.most == 1
