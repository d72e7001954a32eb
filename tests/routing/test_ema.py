"""The exponential moving average."""

import pytest
import torch

from modbench.routing.ema import EMA


def test_a_running_average_is_the_mean_at_first_and_then_forgets() -> None:
    average = EMA(torch.tensor(5.0), decay=0.75)
    for seen, expected in ((1.0, 1.0), (3.0, 2.0), (8.0, 4.0), (8.0, 5.0), (9.0, 6.0), (10.0, 7.0)):
        average.update(torch.tensor(seen))
        assert average.value.item() == pytest.approx(expected)
