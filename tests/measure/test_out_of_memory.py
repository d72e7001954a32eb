"""What an allocation that failed says of itself."""

import numpy as np
import pytest
import torch

from modbench.measure.out_of_memory import asked_bytes, failed_allocation, out_of_memory_sentence

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


def test_other_errors_are_none() -> None:
    assert failed_allocation(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert failed_allocation(ValueError(ON_A_GPU)) is None
    assert asked_bytes("killed") is None


def test_one_that_a_router_is_blamed_for_is_still_one() -> None:
    failed, blamed = torch.OutOfMemoryError(ON_A_GPU), ValueError("router 'mine' raised it; mend it")
    blamed.__cause__ = failed
    assert failed_allocation(blamed) is failed


def test_the_sentence_has_the_size_on_one_line() -> None:
    sentence = out_of_memory_sentence(torch.OutOfMemoryError(f"{ON_A_GPU}\nsecond"))
    assert sentence.startswith("out of memory, asked for 2,684,354,560 bytes (CUDA out of memory.")
    assert "second" not in sentence
    assert out_of_memory_sentence(MemoryError()) == (
        "out of memory, asked for an unknown number of bytes (MemoryError)"
    )
