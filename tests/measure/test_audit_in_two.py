"""An audit in two processes: the same findings, in order."""

import os
from collections.abc import Collection, Iterator

import pytest

from modbench.measure.audit import PROBES, Finding
from modbench.measure.audit import in_two as module
from modbench.measure.audit.in_two import SECOND, in_two


@pytest.fixture(autouse=True)
def _fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_can_fork", lambda: True)


def found(only: Collection[int]) -> Iterator[Finding]:
    """Findings that tell the process that made them."""
    for probe in PROBES:
        if probe.number in only:
            pid = str(os.getpid())
            yield Finding(probe=probe.number, name="", verdict="passed", figure=pid, ranks=True)


def test_findings_come_in_order_from_two_processes() -> None:
    findings = list(in_two(found))
    assert [finding.probe for finding in findings] == [probe.number for probe in PROBES]
    other = {finding.probe for finding in findings if finding.figure != str(os.getpid())}
    assert other == SECOND


def test_a_probe_that_raises_in_the_second_process_raises_here() -> None:
    def raises(only: Collection[int]) -> Iterator[Finding]:
        for finding in found(only):
            if finding.probe == 9:
                raise MemoryError(os.getpid())
            yield finding

    with pytest.raises(MemoryError, match=str(os.getpid())):
        list(in_two(raises))
    findings = in_two(raises)
    assert [next(findings).probe for _ in range(8)] == list(range(1, 9))
