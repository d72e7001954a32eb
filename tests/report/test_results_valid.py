from pathlib import Path

from modbench.report.store import RECORDS, read_records

_RESULTS = Path(__file__).parents[2] / "results"


def test_every_committed_record_is_valid():
    for records in sorted(_RESULTS.rglob(RECORDS)):
        assert read_records(records.parent), f"{records} holds no record"
        for shard in records.iterdir():
            assert shard.suffix == ".jsonl", f"{shard} is no shard"
            assert shard.read_bytes().endswith(b"\n"), f"{shard} ends in half a line"
