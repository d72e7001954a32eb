"""A run that wants more memory than there is leaves a record that says how much it asked for."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_suite import modbench_says, write_suite

from modbench.records.store import read_suite


@pytest.fixture(autouse=True)
def _half_a_terabyte() -> Iterator[None]:
    """Addresses for less than is asked for, also where the kernel would promise any amount."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**39, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_the_record_of_a_run_that_memory_did_not_hold(tmp_path: Path) -> None:
    # The first matmul's weights alone are 3 * width * width * 4 bytes: 824 GB.
    wide = {"width": 262_144, "heads": 4, "mlp_width": 8}
    write_suite(tmp_path, "wide", "vanilla", model=wide, sweep={"budgets": [1e15]})
    code, out = modbench_says(tmp_path, "run", "suite.toml")
    assert code == 0, out  # a result, not a failure
    (record,) = read_suite(tmp_path / "my-results" / "wide").runs
    assert record.status == "oom"
    assert f"asked for {3 * 262_144**2 * 4:,} bytes" in str(record.error)
    assert str(record.error).endswith("; lower [train] micro_batch, or set recompute = true")
    assert str(record.error) in out
    assert "Traceback" not in out
    code, out = modbench_says(tmp_path, "run", "suite.toml")
    assert "1 of 1 run done" in out
    code, out = modbench_says(tmp_path, "run", "suite.toml", "--retry")
    assert "vanilla: oom after" in out


def test_an_audit_that_memory_does_not_hold_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(model: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 5 GiB")

    measure = {"steps": ["audit", "train", "heldout"], "heldout_tokens": 64, "curve_tokens": 64}
    shape, sweep = {"layers": 2}, {"budgets": [1e8]}
    write_suite(tmp_path, "small", "mod", model=shape, measure=measure, sweep=sweep)
    with monkeypatch.context() as patched:
        patched.setattr("modbench.sweep.steps.audit.findings", ends)
        code, out = modbench_says(tmp_path, "run", "suite.toml")
    assert "oom after" in out
    assert "audit: out of memory, asked for 5,368,709,120 bytes" in out
    folder = tmp_path / "my-results" / "small"
    (record,) = read_suite(folder).runs
    assert (record.status, record.audit_key) == ("ok", None)
    assert not read_suite(folder).audits
    code, out = modbench_says(tmp_path, "run", "suite.toml")
    assert code == 0, out
    assert len(read_suite(folder).runs) == len(read_suite(folder).audits) == 1


def test_a_worker_without_a_gpu_refuses_a_suite_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of a cluster differ from the machine of the command."""
    monkeypatch.setattr("modbench.sweep.run.refuse_machine", lambda wanted, precision: None)
    write_suite(tmp_path, "small", "vanilla", sweep={"budgets": [1e8], "device": "cuda"})
    code, out = modbench_says(tmp_path, "run", "suite.toml")
    assert (code, "made for a GPU" in out) == (2, True)
