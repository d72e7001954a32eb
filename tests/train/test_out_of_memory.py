"""Failed allocations are recognised, with their size."""

import pytest
import torch

from modbench.train.out_of_memory import (
    asked_bytes,
    failed_allocation,
    out_of_memory_sentence,
)

ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which "
    "1.20 GiB is free."
)


def test_an_allocation_on_a_cpu() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15, dtype=torch.uint8)
    assert failed_allocation(raised.value) is raised.value
    assert asked_bytes(str(raised.value)) == 10**15


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        *(("512 bytes", 512), ("1.50 KiB", 1536), ("20.00 MiB", 20 * 2**20), ("2.50 GiB", 5 * 2**29)),
        *(("1.25 TiB", 5 * 2**38), ("3 PiB", 3 * 2**50)),
    ],
)
def test_sizes_in_all_units(size: str, asked: int) -> None:
    assert asked_bytes(f"CUDA out of memory. Tried to allocate {size}. GPU 0 has") == asked
    assert asked_bytes(f"Unable to allocate {size} for an array with shape (1,)") == asked


def test_other_errors_are_not_allocations() -> None:
    assert failed_allocation(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert failed_allocation(ValueError(ON_A_GPU)) is None
    assert asked_bytes("killed") is None


def test_an_allocation_that_caused_another_error_is_found() -> None:
    failed, blamed = torch.OutOfMemoryError(ON_A_GPU), ValueError("router 'mine' raised it; fix it")
    blamed.__cause__ = failed
    assert failed_allocation(blamed) is failed


@pytest.mark.parametrize(
    "says",
    [
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_errors_of_cuda_libraries(says: str) -> None:
    error = RuntimeError(says)
    assert failed_allocation(error) is error
    assert out_of_memory_sentence(error).startswith(
        "out of memory, asked for an unknown number of bytes"
    )


def test_the_sentence_has_the_size_on_one_line() -> None:
    sentence = out_of_memory_sentence(torch.OutOfMemoryError(f"{ON_A_GPU}\nsecond"))
    assert sentence.startswith("out of memory, asked for 2,684,354,560 bytes (CUDA out of memory.")
    assert "second" not in sentence
    assert out_of_memory_sentence(MemoryError()) == (
        "out of memory, asked for an unknown number of bytes (MemoryError)"
    )
