"""A small model, and a fake stopwatch and GPU to time it with."""

from typing import Any

from modbench.model.config import ModelConfig
from modbench.records.run import RouterCode, Timed
from modbench.timing.benchmark_case import BenchmarkTarget
from modbench.timing.config import TimeConfig
from modbench.timing.stopwatch import Stopwatch, nothing
from modbench.train.config import TrainConfig

SHAPE: dict[str, Any] = {"vocabulary": 97, "width": 32, "layers": 4, "heads": 4, "mlp_width": 64}
TIME: dict[str, Any] = {
    "samples": 3,
    "warm_up_seconds": 0,
    "prefill": [24],
    "decode_past": [8, 30],
    "decode_batches": [1, 3],
    "decode_tokens": 8,
}


def subject(router: str = "vanilla", **changes: Any) -> BenchmarkTarget:
    timed = Timed(
        router=RouterCode(name=router, options={}),
        model=ModelConfig(**SHAPE),
        train=TrainConfig(sequence=32, batch=2, precision="float32"),
    )
    return BenchmarkTarget.of(timed, TimeConfig(**{**TIME, **changes}))


class Ticking(Stopwatch):
    """A stopwatch by which each run takes ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.each = seconds

    def seconds(self, run: Any, meanwhile: Any = nothing) -> float:
        run()
        meanwhile()
        return self.each

    def in_a_row(self, run: Any, runs: int, meanwhile: Any = nothing) -> float:
        for _ in range(runs):
            run()
        meanwhile()
        return runs * self.each


class Nvml:
    """The module pynvml of a made-up GPU, whose clock falls, at its power cap, and is slowed down at the
    second look."""

    NVMLError = RuntimeError

    def __init__(self) -> None:
        self.looks = 0

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:  # noqa: N802
        return 2000 - 100 * self.looks if clock == 1 else 1500

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        self.looks += 1
        return 0x05 if self.looks == 1 else 0x24

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if handle == "old":
            raise RuntimeError
        return 12_500
