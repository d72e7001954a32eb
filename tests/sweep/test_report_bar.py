"""The bar while a report is written."""

import pytest

from modbench.report.page import PARTS, write_report
from modbench.sweep import report_bar


def test_the_bar_has_the_parts_of_a_report(fakes, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[str] = []
    write_report(fakes.store(tmp_path / "s", [fakes.make_record("mod")]), begin=begun.append)
    assert tuple(begun) == PARTS[:3]  # nothing was timed
    assert report_bar.PARTS == PARTS
    with report_bar.report_bar() as begin:
        for part in PARTS:
            begin(part)
    assert capsys.readouterr().out == ""
