import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up_records import replace, suite_record
from test_audit_record import make_audit

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.records import store
from modbench.records.finished import finished
from modbench.records.record import read_record
from modbench.records.store import append_record, latest, read_suite, remove_leftovers, write_files


def run_of(fakes, *args, **fields):
    return fakes.make_record(*args, **fields).record


def test_what_is_appended_is_read_and_each_record_has_its_own_file(tmp_path, fakes):
    first, second = run_of(fakes, "vanilla"), run_of(fakes, "mod")
    one, other = append_record(tmp_path, first), append_record(tmp_path, second)
    assert one != other
    assert {record.key for record in read_suite(tmp_path).runs} == {first.key, second.key}
    assert one.read_text() == first.line() + "\n"


def test_a_line_is_on_the_disk_before_it_counts_as_stored(tmp_path, fakes, monkeypatch):
    order = []
    right = {name: getattr(os, name) for name in ("fsync", "replace")}

    def noted(name):
        def call(first, *rest):
            order.append((name, os.fstat(first).st_ino if name == "fsync" else None))
            return right[name](first, *rest)

        return call

    for name in right:
        monkeypatch.setattr(os, name, noted(name))
    path = append_record(tmp_path, run_of(fakes))
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    assert order == [("fsync", file), ("replace", None), ("fsync", folder)]


def test_a_full_disk_leaves_no_part_of_a_record(tmp_path, fakes, monkeypatch):
    append_record(tmp_path, run_of(fakes, "vanilla"))
    before = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        append_record(tmp_path, run_of(fakes, "mod"))
    assert {path: path.read_bytes() for path in (tmp_path / "records").iterdir()} == before


def test_a_place_that_can_not_hold_records_is_named(tmp_path, fakes):
    (tmp_path / "records").write_text("a file where the folder goes")
    with pytest.raises(UserError, match=r"records: can't be written .*; choose a folder"):
        append_record(tmp_path, run_of(fakes))
    with pytest.raises(UserError, match=r"records: can't be read"):
        read_suite(tmp_path)


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_an_unterminated_last_line_is_refused(tmp_path, fakes, cut):
    whole, killed = run_of(fakes, "vanilla").line(), run_of(fakes, "mod").line()
    shard = tmp_path / "records" / "a.jsonl"
    shard.parent.mkdir()
    content = f"{whole}\n{killed}\n".encode()[:-cut]
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: no valid record: it is cut off"):
        read_suite(tmp_path)
    assert shard.read_bytes() == content


#: Lines that are no record, and a part of the sentence that says so.
_DAMAGED = {
    "half a line": (lambda line, altered: line[:300], "not JSON"),
    "empty": (lambda line, altered: "", "not JSON"),
    "null": (lambda line, altered: "null", "no"),
    "nested": (lambda line, altered: "[" * 100_000, "not JSON"),
    "huge number": (lambda line, altered: "9" * 5000, "not JSON"),
    "no text": (lambda line, altered: b"\x80\x04cposix system (S'touch here' tR.", "not UTF-8"),
    "no digest": (lambda line, altered: '{"kind":"run","schema":4}', "another line"),
    "a field twice": (lambda line, altered: line[:-1] + ',"status":"ok"}', "another line"),
    "another schema": (lambda line, altered: altered(lambda r: r.update(schema=99)), "schema is 99"),
    "another kind": (lambda line, altered: altered(lambda r: r.update(kind=["run"])), "kind is "),
    "another run": (lambda line, altered: altered(lambda r: r["run"].update(seed=7)), "its run's key"),
    "NaN": (
        lambda line, altered: altered(lambda r: r["curve"][0].update(heldout_loss=float("nan"))),
        "finite",
    ),
}


@pytest.mark.parametrize("what", _DAMAGED)
def test_a_line_that_is_no_record_is_named(tmp_path, fakes, what):
    made, reason = _DAMAGED[what]
    record = run_of(fakes, "mod")
    bad = made(record.line(), lambda change: fakes.altered(record, change))
    bad = bad if isinstance(bad, bytes) else bad.encode()
    shard = tmp_path / "records" / "a.jsonl"
    shard.parent.mkdir()
    content = f"{run_of(fakes).line()}\n".encode() + bad + f"\n{record.line()}\n".encode()
    shard.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_suite(tmp_path)
    sentence = str(raised.value)
    assert f"{shard}, line 2: " in sentence
    assert reason in sentence
    assert "remove that line" in sentence
    assert len(sentence) <= 300
    assert "\n" not in sentence
    assert shard.read_bytes() == content


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path, fakes):
    result = fakes.make_record(status="failed", error="one\u2028two\nthree")
    fakes.store(tmp_path, [result])
    assert read_suite(tmp_path).runs == [result.record]


def test_the_set_of_records_counts_not_shards_order_or_copies(tmp_path, fakes, six):
    one = fakes.store(tmp_path / "one", six)
    many = fakes.store(tmp_path / "many", [*six[::-1], six[2], six[0]], shards=4)
    assert read_suite(one).runs == read_suite(many).runs
    assert read_suite(one).measurements == read_suite(many).measurements
    assert (len(read_suite(many).runs), len(read_suite(many).measurements)) == (6, 12)


def test_of_reruns_an_ok_one_wins_then_the_one_finished_last_then_the_greatest_line(fakes):
    early, late = "2026-01-01T01:00:00+00:00", "2026-01-01T02:00:00Z"
    ok_early = run_of(fakes, loss=5.0, finished=early)
    ok_late = run_of(fakes, loss=5.1, finished=late)
    failed_last = run_of(fakes, status="failed", finished="2026-01-01T03:00:00+00:00")
    ok_late_too = run_of(fakes, loss=5.2, finished=late)
    greatest = max(ok_late, ok_late_too, key=lambda record: record.line())
    assert len({record.key for record in (ok_early, ok_late, failed_last)}) == 1
    for order in ([ok_early, ok_late, failed_last], [failed_last, ok_late, ok_early]):
        assert latest(order) == [ok_late]
    assert latest([ok_late, ok_late_too]) == latest([ok_late_too, ok_late]) == [greatest]


_WRITER = """
import sys
from pathlib import Path
from modbench.records.record import read_record
from modbench.records.store import append_record
record = read_record(Path(sys.argv[2]).read_text())
for _ in range(1000):
    append_record(Path(sys.argv[1]), record)
    print("appended", flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_had_appended(tmp_path, fakes):
    (tmp_path / "line").write_text(run_of(fakes).line())
    command = [sys.executable, "-c", _WRITER, str(tmp_path), str(tmp_path / "line")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(3):
            assert writer.stdout.readline()
        writer.kill()
    assert len(list((tmp_path / "records").glob("*.jsonl"))) >= 3
    assert len(read_suite(tmp_path).runs) == 1


def test_a_flipped_byte_is_refused_wherever_it_is(tmp_path, fakes):
    line = run_of(fakes).line()
    shard = tmp_path / "records" / "a.jsonl"
    shard.parent.mkdir()
    for place in range(0, len(line), 61):
        damaged = bytearray(f"{line}\n".encode())
        damaged[place] ^= 1
        shard.write_bytes(damaged)
        for read in (read_suite, finished):
            with pytest.raises(UserError, match=r"a\.jsonl, line 1: no valid record"):
                read(tmp_path)


@pytest.mark.parametrize("what", ["FIFO", "folder", "device", "link"])
@pytest.mark.parametrize("read", [read_suite, finished])
def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path, what, read):
    shard = tmp_path / "records" / "a.jsonl"
    shard.parent.mkdir()
    if what == "FIFO":
        os.mkfifo(shard)
    elif what == "folder":
        shard.mkdir()
    elif what == "link":
        (tmp_path / "elsewhere").write_text("")
        shard.symlink_to(tmp_path / "elsewhere")
    else:
        shard.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"a\.jsonl: it is not a regular file"):
        read(tmp_path)


def test_the_folder_of_a_suite_may_be_a_link(tmp_path, fakes):
    append_record(tmp_path / "elsewhere", run_of(fakes))
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    assert read_suite(tmp_path / "linked").runs


def test_control_characters_of_records_and_names_are_shown_as_escapes(tmp_path, fakes):
    error = "\x1b]0;title\x07 at\tstep 3\x9b"
    append_record(tmp_path, run_of(fakes, status="failed", error=error, ends=[]))
    assert read_suite(tmp_path).runs[0].error == r"\x1b]0;title\x07 at" + "\t" + r"step 3\x9b"
    assert finished(tmp_path)[0].status == "failed"
    (tmp_path / "records" / "\x1b[2J.jsonl").write_text("")
    with pytest.raises(UserError, match=r"control characters \('.x1b\[2J.jsonl'\)"):
        read_suite(tmp_path)


def test_one_run_and_one_audit_are_read_without_other_lines(tmp_path, fakes, monkeypatch):
    run, other = run_of(fakes), run_of(fakes, seed=1)
    audit, newer = make_audit(), make_audit(finished="2026-01-01T00:02:00+00:00")
    measurements = fakes.make_record().measurements
    for record in (run, other, audit, newer, make_audit("vanilla"), *measurements):
        append_record(tmp_path, record)
    parsed = []

    def watch(line):
        parsed.append(read_record(line))
        return parsed[-1]

    monkeypatch.setattr(store, "read_record", watch)
    assert store.read_run(tmp_path, run.key) == run
    assert parsed == [run]
    parsed.clear()
    assert store.read_audit(tmp_path, audit.key) == newer
    assert len(parsed) == 2
    parsed.clear()
    for read in (store.read_run, store.read_audit):
        assert read(tmp_path, "0" * 16) is None
    assert store.read_audit(tmp_path, run.key) is store.read_run(tmp_path, audit.key) is None


def test_of_reruns_the_one_that_counts_is_read(tmp_path, fakes):
    ok = run_of(fakes, finished="2026-01-01T01:00:00+00:00")
    for record in (ok, run_of(fakes, status="failed", finished="2026-01-01T02:00:00+00:00")):
        append_record(tmp_path, record)
    assert store.read_run(tmp_path, ok.key) == ok


def test_old_temporary_files_are_removed_and_new_ones_are_kept(tmp_path, fakes):
    """A writer in another container can't be seen, so that age alone counts."""
    append_record(tmp_path, run_of(fakes))
    (tmp_path / "records" / ".folder.jsonl.elsewhere.00.tmp").mkdir()  # of the user's
    old = [
        tmp_path / ".leaderboard.md.elsewhere.00.tmp",
        tmp_path / ".leaderboard.md.99999999.tmp",  # an earlier modbench's
        tmp_path / "records" / ".dead.jsonl.elsewhere.00.tmp",
        tmp_path / "runs" / "0a" / ".modbench.json.elsewhere.00.tmp",
    ]
    old[-1].parent.mkdir(parents=True)
    live = [path.with_name(path.name.replace("00", "11")) for path in old if "00" in path.name]
    for path in (*old, *live):
        path.touch()
    assert remove_leftovers(tmp_path) == []
    for path in old:
        os.utime(path, (time.time() - 4000,) * 2)
    assert sorted(remove_leftovers(tmp_path)) == sorted(old)
    assert all(path.exists() for path in live)
    assert not any(path.exists() for path in old)
    assert len(read_suite(tmp_path).runs) == 1


def test_the_age_of_a_temporary_file_is_by_the_clock_of_its_file_system(tmp_path, monkeypatch):
    append = tmp_path / ".page.md.elsewhere.00.tmp"
    append.touch()
    monkeypatch.setattr("time.time", lambda: 1e12)  # this machine's clock is years ahead
    assert remove_leftovers(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [append.name]


def test_the_newest_suite_has_the_largest_number_whatever_a_clock_says(tmp_path, fakes):
    result = fakes.make_record("vanilla")
    old = suite_record([result], finished="2031-01-01T00:00:00+00:00")  # two days, or years, ahead
    first = replace(old, number=1, finished="2030-01-01T00:00:00+00:00")
    second = replace(old, number=2, finished="2026-01-01T00:00:00+00:00")
    other = suite_record([fakes.make_record("mod")], finished="2026-01-02T00:00:00+00:00")
    rival = replace(other, number=2)
    for record in (rival, old, second, first):
        append_record(tmp_path, record)
    by_key = sorted((second, rival), key=lambda record: record.key)
    assert read_suite(tmp_path).suites == [old, first, *by_key]


def test_two_writers_with_one_process_id_do_not_meet(tmp_path, monkeypatch):
    names, replace = [], os.replace

    def seen(old, new):
        names.append(Path(old).name)
        replace(old, new)

    monkeypatch.setattr(os, "replace", seen)
    for text in (b"one", b"two"):
        write_files(tmp_path, {"page.md": text})
    assert len(set(names)) == 2
    assert all(name.startswith(f".page.md.{socket.gethostname()[:40]}.") for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_a_record_that_was_emptied_is_refused(tmp_path, fakes, capsys):
    suite = tmp_path / "mine"
    append_record(suite, run_of(fakes))
    emptied = append_record(suite, run_of(fakes, "mod"))
    emptied.write_bytes(b"")
    remove_leftovers(suite)
    assert main(["report", "--results", str(tmp_path)]) == 2
    assert f"{emptied}: it is empty" in capsys.readouterr().err
