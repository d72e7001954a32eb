import pytest
import torch

from modbench.timing import stopwatch as module
from modbench.timing.stopwatch import matmul_rate


class Watch:
    """A stopwatch that says how long a matmul of ``rate`` FLOP/s takes, except the first time."""

    def __init__(self, rate: float) -> None:
        self.rate, self.seen = rate, list[int]()

    def seconds(self, run) -> float:
        size = len(run())
        self.seen.append(size)
        return 2 * size**3 / self.rate * (1.0 if self.seen.count(size) > 1 else 1.5)


@pytest.mark.parametrize(("rate", "largest"), [(1e9, 128), (1e11, 1024)])
def test_the_best_matmul_counts_and_a_slow_machine_multiplies_small_matrices(
    monkeypatch: pytest.MonkeyPatch, rate: float, largest: int
) -> None:
    watch = Watch(rate)
    monkeypatch.setattr(module, "stopwatch", lambda device: watch)
    assert matmul_rate(torch.float32, torch.device("cpu")) == pytest.approx(rate)
    assert max(watch.seen) == largest


def test_the_generator_of_the_run_is_left_as_it_is() -> None:
    before = torch.get_rng_state()
    assert matmul_rate(torch.bfloat16, torch.device("cpu")) > 0
    assert torch.equal(torch.get_rng_state(), before)
