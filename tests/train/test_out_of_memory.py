"""What an allocation that failed says of itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

from modbench.train import out_of_memory
from modbench.train.out_of_memory import (
    asked_bytes,
    failed_allocation,
    out_of_memory_kills,
    out_of_memory_sentence,
)

ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which "
    "1.20 GiB is free."
)


def test_what_a_cpu_says() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15, dtype=torch.uint8)
    assert failed_allocation(raised.value) is raised.value
    assert asked_bytes(str(raised.value)) == 10**15


def test_what_numpy_says() -> None:
    with pytest.raises(MemoryError) as raised:
        np.empty(2**50, dtype=np.uint8)
    assert failed_allocation(raised.value) is raised.value
    assert asked_bytes(str(raised.value)) == 2**50


def test_what_a_gpu_says() -> None:
    assert failed_allocation(torch.OutOfMemoryError(ON_A_GPU)) is not None
    assert asked_bytes(ON_A_GPU) == 5 * 2**29


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        *(("512 bytes", 512), ("1.50 KiB", 1536), ("20.00 MiB", 20 * 2**20), ("2.50 GiB", 5 * 2**29)),
        *(("1.25 TiB", 5 * 2**38), ("3 PiB", 3 * 2**50)),
    ],
)
def test_a_size_is_told_in_any_unit(size: str, asked: int) -> None:
    assert asked_bytes(f"CUDA out of memory. Tried to allocate {size}. GPU 0 has") == asked
    assert asked_bytes(f"Unable to allocate {size} for an array with shape (1,)") == asked


def test_other_errors_are_none() -> None:
    assert failed_allocation(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert failed_allocation(ValueError(ON_A_GPU)) is None
    assert asked_bytes("killed") is None


def test_one_that_a_router_is_blamed_for_is_still_one() -> None:
    failed, blamed = torch.OutOfMemoryError(ON_A_GPU), ValueError("router 'mine' raised it; mend it")
    blamed.__cause__ = failed
    assert failed_allocation(blamed) is failed


@pytest.mark.parametrize(
    "says",
    [
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_what_a_gpus_libraries_say(says: str) -> None:
    error = RuntimeError(says)
    assert failed_allocation(error) is error
    assert out_of_memory_sentence(error).startswith(
        "out of memory, asked for an unknown number of bytes"
    )


def test_one_that_is_hidden_by_what_came_of_it_is_still_one() -> None:
    failed, later = torch.OutOfMemoryError(ON_A_GPU), RuntimeError("the capture was not ended")
    later.__context__ = failed
    assert failed_allocation(later) is failed
    later.__suppress_context__ = True
    assert failed_allocation(later) is None
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert failed_allocation(one) is None


def test_the_sentence_has_the_size_on_one_line() -> None:
    sentence = out_of_memory_sentence(torch.OutOfMemoryError(f"{ON_A_GPU}\nsecond"))
    assert sentence.startswith("out of memory, asked for 2,684,354,560 bytes (CUDA out of memory.")
    assert "second" not in sentence
    assert out_of_memory_sentence(MemoryError()) == (
        "out of memory, asked for an unknown number of bytes (MemoryError)"
    )


def test_the_kernels_kills_are_those_that_any_of_its_files_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both versions of control groups, and without one."""
    files = {
        "/proc/vmstat": "pgfault 7\noom_kill 3\nx_oom_kill 90\n",
        "/sys/fs/cgroup/memory.events": "oom 50\noom_kill 4\noom_group_kill 60\n",
        "/sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
    }
    monkeypatch.setattr(out_of_memory, "Path", lambda name: tmp_path / name.replace("/", "_"))
    assert out_of_memory_kills() == 0  # not Linux
    found = []
    for name, text in files.items():
        (tmp_path / name.replace("/", "_")).write_text(text)
        found.append(out_of_memory_kills())
    assert found == [3, 7, 12]
