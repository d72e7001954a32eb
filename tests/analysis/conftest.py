"""Fixtures of the tests of intervals."""

import pytest


@pytest.fixture(autouse=True)
def _few_draws() -> None:
    """As many draws as for a page."""
