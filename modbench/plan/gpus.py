"""Data sheets of GPUs, and what an hour of them does. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log

from modbench.errors import UserError, known_names


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """``flops``: dense bfloat16 matmul peak in FLOP/s."""

    name: str
    flops: float


GPUS: Mapping[str, Gpu] = {
    name: Gpu(name=name, flops=tflops * 1e12)
    for name, tflops in (
        ("a100", 312),
        ("h100", 989.4),  # SXM
        ("h100-pcie", 756),
        ("h100-nvl", 835),
        ("h200", 989.4),
        ("b200", 2250),
        ("mi300x", 1307.4),
    )
}


def described_gpu(name: str, peak_tflops: float | None = None) -> Gpu:
    """The GPU ``name``; ``peak_tflops`` replaces the figure of its data sheet, and allows any name.
    Raise a `UserError` for an unknown name without it, or a figure that is not positive and finite."""
    if peak_tflops is not None and not 0 < peak_tflops < inf:
        raise UserError(f"--peak-tflops is {peak_tflops}; it must be above 0 and finite")
    known = GPUS.get(name.lower())
    if peak_tflops is not None:
        return Gpu(name=known.name if known else name, flops=peak_tflops * 1e12)
    if known is None:
        raise UserError(
            f"GPU '{name}' is not known; {known_names(name.lower(), GPUS)}; for another GPU give "
            "--peak-tflops"
        )
    return known


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


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind. ``price``: of an hour of one GPU. ``utilisation`` is the assumed model FLOPs
    utilisation (MFU); None: by the width of the model (`utilisation_at`). Raise a `UserError` for a
    utilisation outside (0, 1], or a price of 0 or less."""

    gpu: Gpu
    price: float
    utilisation: float | None = None

    def __post_init__(self) -> None:
        if self.utilisation is not None and not 0 < self.utilisation <= 1:
            raise UserError(f"--utilisation is {self.utilisation}; it must lie in (0, 1]")
        if not 0 < self.price < inf:
            raise UserError(f"--price is {self.price:g}; it must be above 0 and finite")

    def at(self, width: int) -> float:
        """The utilisation assumed of a model of ``width``."""
        return utilisation_at(width) if self.utilisation is None else self.utilisation

    def hours(self, flops: float, width: int) -> float:
        """Hours of one GPU that ``flops`` of a model of ``width`` take."""
        return flops / (self.gpu.flops * self.at(width)) / 3600
