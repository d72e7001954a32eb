"""Fields of a timed case besides seconds: energy, GPU clocks, and how its layers routed.

Ticking clocks, a made-up GPU.
"""

from itertools import count
from typing import Any

import pytest
from timed_made_up import Nvml, Ticking, subject

from modbench.timing import clock
from modbench.timing.clock import Gpu, GpuMonitor
from modbench.timing.stopwatch import SHORTEST

ONE_DECODING = {"decode_past": [8], "decode_batches": [1], "decode_tokens": 2}


class Counting(Nvml):
    """It has spent 6 J more each time that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.spent = count(1000, 6000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return next(self.spent)


def timed(
    monkeypatch: pytest.MonkeyPatch, kind: str = "inference", *, each: float = 1.0
) -> dict[str, Any]:
    """On a GPU, the samples of a case taking a second in total and a run ``each``."""
    moments = count(0.0, 1.0)
    monkeypatch.setattr(clock, "monotonic", lambda: next(moments))
    monkeypatch.setattr(clock, "open_gpu", lambda on: (Gpu(Counting(), "new"), "ok"))
    monkeypatch.setattr(clock, "stopwatch", lambda on: Ticking(each))
    monkeypatch.setattr("modbench.timing.clock.COPIED", {"cpu": 16})
    of = subject("mod", **ONE_DECODING)
    if kind == "ceiling":
        return clock.measured_ceilings(of, 1)
    return clock.measured_times(kind, of, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_energy_of_a_run_that_is_repeated_is_shared_out(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = timed(monkeypatch, kind, each=SHORTEST / 4)
    assert [case["loops"] for case in found["cases"]] == [4] * 2
    assert [case["joules"] for case in found["cases"]] == [6 / (4 * 3)] * 2


@pytest.mark.parametrize(("seconds", "told"), [(0.9, False), (1.0, True), (7.0, True)])
def test_energy_is_reported_for_a_second_or_more(
    seconds: float, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter((5.0, 5.0 + seconds))
    monkeypatch.setattr(clock, "monotonic", lambda: next(moments))
    monitor = GpuMonitor(Gpu(Counting(), "new"))
    monitor.begin()
    assert monitor.joules(3) == (6 / 3 if told else None)


@pytest.mark.parametrize("kind", ["training", "ceiling"])
def test_a_gpu_is_looked_at_in_each_sample(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is slowed down from the second look on."""
    found = timed(monkeypatch, kind)
    watched = found["gpu"] if kind == "ceiling" else found["cases"][0]["gpu"]
    looks = 18 if kind == "ceiling" else 3  # of five matmuls and a copy, or of one case
    assert watched == {
        "clock_mhz": [2000 - 100 * (looks - 1), 2000],
        "memory_clock_mhz": [1500, 1500],
        "mean_clock_mhz": 2000 - 50 * (looks - 1),
        "power_capped": True,
        "throttled": ["software thermal slowdown"],
    }
    assert found["machine"]["nvml"] == "ok"
