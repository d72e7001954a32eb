import pytest
import torch

from modbench.timing import stopwatch as module
from modbench.timing.stopwatch import matmul_rate


class Watch:
    """A stopwatch that says how long a matmul of ``rate`` FLOP/s takes, and longer for the first of each
    size, and for the very first."""

    def __init__(self, rate: float, first: float = 0.0) -> None:
        self.rate, self.first, self.seen = rate, first, list[int]()

    def seconds(self, run) -> float:
        size = len(run())
        late = 0.0 if self.seen else self.first
        self.seen.append(size)
        return late + 2 * size**3 / self.rate * (1.0 if self.seen.count(size) > 1 else 1.5)


@pytest.mark.parametrize(("rate", "largest"), [(1e9, 128), (1e11, 1024)])
def test_the_best_matmul_counts_and_a_slow_machine_multiplies_small_matrices(
    monkeypatch: pytest.MonkeyPatch, rate: float, largest: int
) -> None:
    watch = Watch(rate)
    monkeypatch.setattr(module, "stopwatch", lambda device: watch)
    assert matmul_rate(torch.float32, torch.device("cpu")) == pytest.approx(rate)
    assert max(watch.seen) == largest


@pytest.mark.parametrize("first", [0.012, 30.0])
def test_a_slow_first_matmul_does_not_end_the_search(
    monkeypatch: pytest.MonkeyPatch, first: float
) -> None:
    """A GPU loads its library of matmuls then."""
    watch = Watch(1e11, first)
    monkeypatch.setattr(module, "stopwatch", lambda device: watch)
    assert matmul_rate(torch.float32, torch.device("cpu")) == pytest.approx(1e11)
    assert max(watch.seen) == 1024


def test_the_generator_of_the_run_is_left_as_it_is() -> None:
    before = torch.get_rng_state()
    assert matmul_rate(torch.bfloat16, torch.device("cpu")) > 0
    assert torch.equal(torch.get_rng_state(), before)
