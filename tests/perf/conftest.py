"""Benchmarks have targets, and say at the end which of them were reached."""

from collections.abc import Callable, Iterator

import pytest

Reach = Callable[[str, float, float, str], None]
_reached: list[tuple[str, float, float, str]] = []


@pytest.fixture
def reach() -> Iterator[Reach]:
    """``reach(what, measured, at most, unit)``: a target of the benchmark, printed at the end; one that
    is missed fails it."""
    missed = []

    def note(what: str, measured: float, at_most: float, unit: str) -> None:
        _reached.append((what, measured, at_most, unit))
        if measured > at_most:
            missed.append(f"{what}: {measured:.3g} {unit}, more than {at_most:g}")

    yield note
    assert not missed, "; ".join(missed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _reached:
        return
    terminalreporter.section("targets")
    for what, measured, at_most, unit in _reached:
        verdict = "reached" if measured <= at_most else "MISSED"
        terminalreporter.line(f"{what:<62}{measured:>10.3g} of {at_most:>4g} {unit:<3} {verdict}")
