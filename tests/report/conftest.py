"""Fixtures of the tests of pages."""

import pytest

from modbench.analysis import isoflop


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are made from few draws of the noise: the tests of analysis say what many are for."""
    monkeypatch.setattr(isoflop, "DRAWS", 500)
    monkeypatch.setattr(isoflop, "DRAWS_OF_DEPTHS", 500)
