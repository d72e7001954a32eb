"""GPUs, clusters, and numbers with suffixes."""

import pytest

from modbench.plan.gpus import GPUS, Cluster, Gpu, described_gpu
from modbench.plan.units import amount, shown


@pytest.mark.parametrize(
    ("text", "value"),
    [("300B", 300_000_000_000), ("1e21", 10**21), ("12,000", 12_000), ("-3", -3)],
)
def test_an_amount_is_read_exactly(text: str, value: int) -> None:
    assert amount(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(1_240_000_000, "1.24B"), (999_600, "1M"), (12, "12"), (1.05e12, "1.05T")],
)
def test_an_amount_is_shown_with_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_known_gpu_is_found_by_name_and_a_figure_replaces_its_data_sheet() -> None:
    assert described_gpu("H100") == described_gpu("h100") == GPUS["h100"]
    assert GPUS["h100"].flops == pytest.approx(989.4e12)
    assert described_gpu("a100", peak_tflops=250) == Gpu(name="a100", flops=250e12)
    assert described_gpu("mine", peak_tflops=1).flops == 1e12


def test_hours_are_flops_over_what_a_gpu_does_in_an_hour() -> None:
    cluster = Cluster(described_gpu("a100"), price=1.0, utilisation=0.5)
    # 312e12 x 0.5 x 3,600 in an hour.
    assert cluster.hours(5616 * 10**14, width=64) == pytest.approx(1.0)
