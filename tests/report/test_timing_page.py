"""Sentences of timings.md about its rows."""

from typing import Any

from timings_made_up import make_timing, table_of, timed_of

from modbench.records.record import TimingRecord
from modbench.report.timing.page import timing_page


def page_of(*timings: TimingRecord, **options: Any) -> str:
    return timing_page(table_of(*timings), **options).to_markdown()


def test_memory_is_shown_by_part_measured_before_predicted() -> None:
    sizes = {"parameters": 3, "gradients": 5, "optimizer": 7, "cache": 11, "activations": 13}
    measured = {part: 10**6 * size for part, size in sizes.items()} | {"peak": 39 * 10**6}
    predicted = {part: size // 2 for part, size in measured.items()}
    found = {"measured": measured, "predicted": predicted}
    page = page_of(make_timing("inference_memory", timed_of("mod"), found))
    assert "| scheme | phase | parameters | gradients | optimizer | cache | activations | peak |" in page
    cells = "3.0 / 1.5 | 5.0 / 2.5 | 7.0 / 3.5 | 11.0 / 5.5 | 13.0 / 6.5 | 39.0 / 19.5 | +100.0"
    assert f"| mod | inference | {cells} |" in page
