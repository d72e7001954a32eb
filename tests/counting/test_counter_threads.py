"""A counter sees what its own thread runs, and refuses if that starts threads that run matmuls."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import parallel_apply
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from modbench import FlopCounter
from modbench.errors import UserError
from modbench.ledger import component

#: 2 sequences, 4 heads of width 8: FLOPs of one query-key pair, forward.
EACH = 2 * 4 * 4 * 8


def attention(length: int, *, causal: bool = True) -> torch.Tensor:
    q, k, v = (torch.randn(2, 4, length, 8, requires_grad=True) for _ in "qkv")
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).sum()


class InOtherThread:
    """Runs ``work`` in a thread, stopped at its ``hold()`` while this thread goes on."""

    def __init__(self, work: Callable[[Callable[[], None]], object]) -> None:
        self._holds, self._goes_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,))
        self._error: BaseException | None = None

    def _run(self, work: Callable[[Callable[[], None]], object]) -> None:
        try:
            work(self._hold)
        except BaseException as error:
            self._error = error
        finally:
            self._holds.set()

    def _hold(self) -> None:
        self._holds.set()
        assert self._goes_on.wait(20)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._holds.wait(20)

    def __exit__(self, *_: object) -> None:
        self._goes_on.set()
        self._thread.join(120)
        if self._error is not None:
            raise self._error


class Hold(TorchFunctionMode):
    """Holds inside each call of attention."""

    def __init__(self, hold: Callable[[], None]) -> None:
        super().__init__()
        self._hold = hold

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.__name__ == "scaled_dot_product_attention":
            self._hold()
        return func(*args, **(kwargs or {}))


def test_attention_of_an_uncounted_thread_leaves_the_counter_alone() -> None:
    def other(hold: Callable[[], None]) -> None:
        with Hold(hold):
            attention(9)

    x = torch.randn(3, 5)
    with InOtherThread(other), FlopCounter() as counter:
        x @ x.T
    assert counter.total == counter.total_model == 2 * 3 * 5 * 3


@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas_in_threads_are_refused(replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one replica `parallel_apply` starts no thread."""
    layers = [nn.Linear(4, 5) for _ in range(replicas)]
    pretend_accelerator(monkeypatch)
    if replicas == 1:
        with FlopCounter() as counter:
            parallel_apply(layers, [torch.randn(3, 4)], devices=[0])
        assert counter.total == 2 * 3 * 4 * 5
        return
    words = "another thread ran op 'aten::"
    with pytest.raises(UserError, match=words), FlopCounter():
        parallel_apply(layers, [torch.randn(3, 4)] * 2, devices=[0, 0])


@pytest.mark.parametrize("by", ["submit", "map", "asyncio"])
def test_a_pool_from_before_is_refused(by: str) -> None:
    def work(_: object = None) -> torch.Tensor:
        return torch.ones(3, 4) @ torch.ones(4, 5)

    def run() -> None:
        if by == "submit":
            pool.submit(work).result()
        elif by == "map":
            list(pool.map(work, [0]))
        else:
            loop.run_until_complete(loop.run_in_executor(pool, work))

    with ThreadPoolExecutor(1) as pool, closing(asyncio.new_event_loop()) as loop:
        pool.submit(work).result()  # has started its thread
        with pytest.raises(UserError, match="another thread ran op"), FlopCounter():
            run()
        with FlopCounter() as counter:
            pool.submit(torch.ones, 3).result()
        assert counter.total == 0
        pool.submit(work).result()  # outside any counter


def pretend_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """`parallel_apply` runs on accelerators alone: let it have one whose device is the CPU."""
    stands_in: dict[str, object] = {
        "is_available": lambda: True,
        "current_accelerator": lambda: torch.device("cpu"),
        "current_stream": lambda device: nullcontext(),
        "device_index": lambda device: nullcontext(),
    }
    for name, value in stands_in.items():
        monkeypatch.setattr(torch.accelerator, name, value)


def test_threads_that_run_no_matmul_or_count_for_themselves_are_no_error() -> None:
    counters = []

    def count() -> None:
        with FlopCounter() as counter:
            torch.ones(3, 4) @ torch.ones(4, 5)
        counters.append(counter)

    with FlopCounter() as counter:
        for target in (count, lambda: torch.ones(3).add(1)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert (counter.total, counters[0].total) == (0, 120)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=lambda b: b.name)
@pytest.mark.parametrize("recompute", [False, True])
def test_two_counters_in_two_threads_count_each_its_own(backend: SDPBackend, recompute: bool) -> None:
    counters: list[FlopCounter] = []

    def other(hold: Callable[[], None]) -> None:
        with FlopCounter() as counter:
            counters.append(counter)
            with component("there", 2):
                loss = attention(9)
                hold()
            loss.backward()

    def region(q: torch.Tensor) -> torch.Tensor:
        with component("here", 1):
            return F.scaled_dot_product_attention(q, q, q, is_causal=True)

    q = torch.randn(2, 4, 5, 8, requires_grad=True)
    with sdpa_kernel(backend), FlopCounter() as counter, InOtherThread(other):
        y = checkpoint(region, q, use_reentrant=True) if recompute else region(q)
        y.sum().backward()
        torch.ones(3, 5) @ torch.ones(5, 7)
    assert (counter.total, counter.total_model) == (3 * EACH * 25 + 210, 3 * EACH * 15 + 210)
    assert {key[:2] for key in counter.ledger.entries} == {(1, "here"), (-1, "other")}
    (there,) = counters
    assert (there.total, there.total_model) == (3 * EACH * 81, 3 * EACH * 45)
    assert {key[:2] for key in there.ledger.entries} == {(2, "there")}
    assert F.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention


def test_an_error_in_the_counted_code_is_not_hidden_by_a_thread() -> None:
    def run() -> None:
        thread = threading.Thread(target=lambda: torch.ones(3, 4) @ torch.ones(4, 5))
        thread.start()
        thread.join()
        raise KeyError

    with pytest.raises(KeyError), FlopCounter():
        run()
