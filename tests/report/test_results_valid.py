from pathlib import Path

import pytest

from modbench.report.store import RECORDS, read_records
from modbench.report.timing import TIMINGS, read_timings

_RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize(("name", "read"), [(RECORDS, read_records), (TIMINGS, read_timings)])
def test_every_committed_line_is_valid(name, read):
    for folder in sorted(_RESULTS.rglob(name)):
        assert read(folder.parent), f"{folder} holds nothing"
        for shard in folder.iterdir():
            if shard.name == ".lock":
                continue  # of a run in this checkout; never committed
            assert shard.suffix == ".jsonl", f"{shard} is no shard"
            assert shard.read_bytes().endswith(b"\n"), f"{shard} ends in half a line"
