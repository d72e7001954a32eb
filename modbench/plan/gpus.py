"""Data sheets of GPUs, and clusters of one kind of GPU. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log

from modbench.errors import UserError, known_names


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """``flops``: dense bfloat16 matmul peak in FLOP/s. ``memory``: bytes."""

    name: str
    flops: float
    memory: int


GPUS: Mapping[str, Gpu] = {
    name: Gpu(name=name, flops=tflops * 1e12, memory=gigabytes * 10**9)
    for name, tflops, gigabytes in (
        ("a100-40gb", 312, 40),
        ("a100-80gb", 312, 80),
        ("h100", 989.4, 80),  # SXM
        ("h100-pcie", 756, 80),
        ("h100-nvl", 835, 94),
        ("h200", 989.4, 141),
        ("b200", 2250, 180),
        ("mi300x", 1307.4, 192),
    )
}


def described_gpu(name: str, peak_tflops: float | None = None, memory_gb: float | None = None) -> Gpu:
    """The GPU ``name``; the figures replace those of its data sheet. With both figures any name is
    allowed. Raise a `UserError` for an unknown name without both figures, or a figure that is not
    positive and finite."""
    for field_name, value in (("peak_tflops", peak_tflops), ("memory_gb", memory_gb)):
        if value is not None and not 0 < value < inf:
            raise UserError(f"{field_name} is {value}; it must be above 0 and finite")
    flops = None if peak_tflops is None else peak_tflops * 1e12
    memory = None if memory_gb is None else round(memory_gb * 1e9)
    known = GPUS.get(name.lower())
    if known is not None:
        return Gpu(name=known.name, flops=flops or known.flops, memory=memory or known.memory)
    if flops is None or memory is None:
        raise UserError(
            f"GPU '{name}' is not known; {known_names(name.lower(), GPUS)}; for another GPU give both "
            "--peak-tflops and --memory-gb"
        )
    return Gpu(name=name, flops=flops, memory=memory)


#: Assumed utilisation by width: estimates for one H100 (docs/timing.md), none of them measured. Narrow
#: matmuls, and passes that wait for memory, take a larger part of a narrow model's step.
_BY_WIDTH = {192: 0.10, 512: 0.17, 768: 0.28, 1024: 0.34, 2048: 0.40}


def utilisation_at(width: int) -> float:
    """The assumed model FLOPs utilisation of a model of ``width``, interpolated in its logarithm."""
    widths = [log(each) for each in _BY_WIDTH]
    values = list(_BY_WIDTH.values())
    here = min(max(log(width), widths[0]), widths[-1])
    after = next(n for n in range(1, len(widths)) if here <= widths[n])
    part = (here - widths[after - 1]) / (widths[after] - widths[after - 1])
    return values[after - 1] + part * (values[after] - values[after - 1])


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """``gpus`` GPUs of one kind. ``utilisation`` is the assumed model FLOPs utilisation (MFU); None: by
    the width of the model (`utilisation_at`). ``price``: of an hour of one GPU. Raise a `UserError` for
    no GPU, a utilisation outside (0, 1], or a price of 0 or less."""

    gpu: Gpu = field(default_factory=lambda: GPUS["h100"])
    gpus: int = 8
    utilisation: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise UserError(f"gpus is {self.gpus}; it must be 1 or more")
        if self.utilisation is not None and not 0 < self.utilisation <= 1:
            raise UserError(f"utilisation is {self.utilisation}; it must lie in (0, 1]")
        if self.price is not None and not self.price > 0:
            raise UserError(f"--price is {self.price:g}; it must be above 0")

    def at(self, width: int) -> float:
        """The utilisation assumed of a model of ``width``."""
        return utilisation_at(width) if self.utilisation is None else self.utilisation

    def hours(self, flops: float, width: int) -> float:
        """Hours of one GPU that ``flops`` of a model of ``width`` take."""
        return flops / (self.gpu.flops * self.at(width)) / 3600
