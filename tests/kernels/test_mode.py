"""The switch between plain and fast kernels."""

import pytest
import torch

from modbench import kernels
from modbench.measure.environment import environment


def test_fast_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    assert kernels.mode() == "fast"


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_the_mode_is_part_of_a_records_environment(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, mode)
    assert environment(torch.float32)["kernels"] == mode
