import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_records import replace

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.records.line import as_json, key_of
from modbench.report import write as write_module
from modbench.report.write import WRITTEN, first_difference, write_report

pytestmark = pytest.mark.figures

_NAMES = [
    "differences.csv",
    "leaderboard.csv",
    "leaderboard.md",
    "loss_vs_forward_flops.svg",
    "loss_vs_training_flops.svg",
    "runs.csv",
]
_REPORT = """
import sys
from pathlib import Path
from modbench.report.write import WRITTEN, first_difference, write_report
write_report(Path(sys.argv[1]))
assert "torch" not in sys.modules
"""


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _many(fakes, six):
    """All that could depend on an order: seeds, reruns, failures, shared labels, two comparisons."""
    records = list(six)
    records += [fakes.make_record("mod", seed=seed, loss=4.86 + seed / 100, cost=0.6) for seed in (1, 2)]
    records += [fakes.make_record("mod", cost=0.6, loss=4.7, finished="2026-01-02T00:00:00+00:00")]
    records += [fakes.make_record("lost", seed=seed, status="diverged") for seed in (0, 1)]
    records += [fakes.make_record("leaky", failed_probes=(2, 1), seed=seed) for seed in (0, 1)]
    records += [fakes.make_record("twice", options={"capacity": c}, cost=c) for c in (0.4, 0.7)]
    records += [fakes.make_record("vanilla", train={"budget": 2 * 10**12})]
    routings = [fakes.make_routing(), fakes.make_routing(experts=(0, 1), first=-5, exponent=-1)]
    records += [
        fakes.make_record("routed", seed=seed, routing=routing) for seed, routing in enumerate(routings)
    ]
    return records


def test_the_report_is_the_files_that_have_data_and_nothing_else(tmp_path, fakes, six):
    paths = write_report(fakes.store(tmp_path, six)).paths
    assert sorted(path.name for path in paths) == _NAMES
    assert list(_bytes(tmp_path)) == [WRITTEN, *_NAMES]


def test_the_metric_that_earlier_records_rank_by_changes_no_file(tmp_path, fakes, six):
    record = fakes.suite_record(six)
    suite = as_json(record.suite) | {"rank_by": "modbench_cloze"}
    earlier = replace(record, suite=suite, key=key_of(suite))
    folders = [fakes.store(tmp_path / of.key, six, of) for of in (record, earlier)]
    for folder in folders:
        write_report(folder)
    assert _bytes(folders[0]) == _bytes(folders[1])


def test_check_names_the_first_byte_that_differs_and_writes_nothing(tmp_path, fakes, six, capsys):
    folder = fakes.store(tmp_path / "fake", six)
    write_report(folder)
    before = _bytes(folder)
    assert first_difference(folder) is None
    assert main(["report", "--check", "--results", str(tmp_path)]) == 0
    table = before["leaderboard.csv"]
    (folder / "leaderboard.csv").write_bytes(table[:-2] + b"7\n")
    place, line = len(table) - 2, table.count(b"\n")
    sentence = f"leaderboard.csv differs from the records at byte {place} (line {line})"
    assert main(["report", "--check", "--results", str(tmp_path)]) == 1
    assert sentence in capsys.readouterr().out
    (folder / "leaderboard.csv").write_bytes(table)
    (folder / "timings.csv").write_text("mine\n")
    assert first_difference(folder) is None
    (folder / WRITTEN).write_text((folder / WRITTEN).read_text() + "timings.csv\n")
    assert str(first_difference(folder)).endswith("timings.csv does not follow from the records")
    (folder / "timings.csv").unlink()
    (folder / WRITTEN).write_bytes(before[WRITTEN])
    (folder / "loss_vs_training_flops.svg").unlink()
    assert str(first_difference(folder)).endswith("loss_vs_training_flops.svg is missing")
    assert _bytes(folder) == {n: of for n, of in before.items() if n != "loss_vs_training_flops.svg"}


@pytest.mark.parametrize(
    ("old", "new", "equal"),
    [
        ("4.9,", "4.90000001,", True),
        ("4.9,", "4.91,", False),
        ("1000000000000,", "1000000000001,", False),
        ("4.9,", '"4.9",', False),
    ],
)
def test_check_allows_another_last_digit_of_a_decimal_number_only(tmp_path, fakes, six, old, new, equal):
    folder = fakes.store(tmp_path, six)
    write_report(folder)
    path = folder / "runs.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert (first_difference(folder) is None) == equal


@pytest.mark.parametrize("seed", [1, 2])
def test_bytes_follow_from_the_set_of_records_alone(tmp_path, fakes, six, seed):
    records = _many(fakes, six)
    write_report(fakes.store(tmp_path / "plain", records))
    shuffled = [*records, *records[:3]]
    random.Random(seed).shuffle(shuffled)
    other = fakes.store(tmp_path / "other" / "place", shuffled, shards=1 + 2 * seed)
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nfigure.dpi: 30\nsavefig.bbox: tight\n")
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(seed),
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C.UTF-8" if seed == 1 else "C",
        "MATPLOTLIBRC": str(tmp_path),
    }
    for _ in range(seed):  # with seed 2, a second time over its own files
        subprocess.run(
            [sys.executable, "-c", _REPORT, str(other)], check=True, env=environment, cwd=tmp_path
        )
    assert _bytes(other) == _bytes(tmp_path / "plain")


def test_a_reader_of_the_old_table_is_not_disturbed(tmp_path, fakes, six):
    write_report(fakes.store(tmp_path, six))
    old = (tmp_path / "leaderboard.csv").read_bytes()
    with (tmp_path / "leaderboard.csv").open("rb", buffering=0) as reader:
        start = reader.read(10)
        write_report(fakes.store(tmp_path, six[:2]))
        assert start + reader.read() == old
    assert (tmp_path / "leaderboard.csv").read_bytes() != old


def test_a_report_that_fails_leaves_the_old_one(tmp_path, fakes, six, monkeypatch):
    write_report(fakes.store(tmp_path, six))
    before = _bytes(tmp_path)
    fakes.store(tmp_path, six[:2])

    def fail(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(write_module, "drawn_files", fail)
        with pytest.raises(MemoryError):
            write_report(tmp_path)
    assert _bytes(tmp_path) == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(UserError, match="No space left"):
            write_report(tmp_path)
    assert _bytes(tmp_path) == before


def test_a_damaged_record_is_refused_and_nothing_derived_changes(tmp_path, fakes, six):
    write_report(fakes.store(tmp_path, six))
    before = _bytes(tmp_path)
    (tmp_path / "records" / "bad.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1: no valid record.*remove that line"):
        write_report(tmp_path)
    assert _bytes(tmp_path) == before


def test_figures_for_slides_are_written_where_asked_and_removed_by_a_plain_report(tmp_path, fakes, six):
    write_report(fakes.store(tmp_path, six))
    plain = _bytes(tmp_path)
    write_report(tmp_path, png=True)
    slides = {name.replace("svg", "png") for name in plain if name.endswith("svg")}
    assert _bytes(tmp_path).keys() - plain.keys() == slides
    written = _bytes(tmp_path)
    assert {name: written[name] for name in plain if name != WRITTEN} == {
        name: of for name, of in plain.items() if name != WRITTEN
    }
    assert first_difference(tmp_path) is None
    write_report(tmp_path)
    assert _bytes(tmp_path) == plain


def test_csv_writes_the_tables_and_leaves_pages_and_figures_as_they_are(tmp_path, fakes, six):
    whole = fakes.store(tmp_path / "whole", six)
    write_report(whole)
    folder = fakes.store(tmp_path / "tables", six)
    for name in ("leaderboard.md", "optima.csv", "memory.csv"):
        (folder / name).write_text("of an earlier report")
    (folder / WRITTEN).write_text("leaderboard.md\noptima.csv\nrecords\n../other\n")
    paths = write_report(folder, csv=True).paths
    assert sorted(path.name for path in paths) == ["differences.csv", "leaderboard.csv", "runs.csv"]
    assert all(path.read_bytes() == (whole / path.name).read_bytes() for path in paths)
    assert (folder / "leaderboard.md").read_text() == "of an earlier report"
    assert not (folder / "optima.csv").exists()
    assert (folder / "memory.csv").exists()  # a user's own
    assert {*(folder / WRITTEN).read_text().split()} == {
        "leaderboard.md",
        *(path.name for path in paths),
    }
