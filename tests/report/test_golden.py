"""Whole reports of made-up suites: pages and tables equal the files in golden/. After a change that is
meant: ``pytest tests/report/test_golden.py --accept``, and read the difference."""

from pathlib import Path
from typing import Any

import pytest
from isoflop_made_up import Make, records, sweep_records
from made_up_records import make_record, make_routing, store
from test_depth_pages import records as of_depths
from test_downstream import row
from timings_made_up import ceiling, labels_in, make_case, suite_of, timed, weighed

from modbench.records.record import AnyRecord
from modbench.records.result import Result
from modbench.report.write import write_report

GOLDEN = Path(__file__).with_name("golden")


def leaderboard() -> list[Result]:
    """Three seeds of ranked rows, rows that are not ranked, and a lost one."""
    ranked = [
        make_record(label, seed=seed, loss=loss + seed / 50, layers=layers, routing=routing)
        for label, loss, layers, routing in (
            ("vanilla", 5.0, None, None),
            ("mod", 4.8, [{"layer": 1, "added": 0.01, "gate_scale": 0.25}], make_routing()),
            ("token_choice", 4.9, None, make_routing((), (0, 1))),
        )
        for seed in range(3)
    ]
    leaky = make_record("leaky", router="mod", loss=4.0, failed_probes=(1,))
    lost = make_record("lost", router="mod", status="diverged", error="a loss is nan in step 3")
    return [*ranked, leaky, lost]


def isoflop(make: Make) -> list[Result]:
    edge = sweep_records(make, "edge", lambda width, _: 4 - width / 200)
    return [*records(make), *edge]


def downstream() -> list[Result]:
    right = {"vanilla": 0.5, "mod": 0.75}
    return [make_record(label, downstream={"arc_easy": row(of)}) for label, of in right.items()]


def timings() -> list[AnyRecord]:
    taken = [
        timed("vanilla", make_case(seconds=(0.2,) * 4), make_case("decode after 8 x 1")),
        timed("mod", make_case(), make_case("decode after 8 x 1", seconds=(0.1, 0.1, 0.1, 0.3))),
        timed("token_choice", make_case(), overloaded=True),
        timed("expert_choice", status="oom", error="out of memory"),
        weighed("mod", 3_000_000),
        ceiling(),
    ]
    keys = labels_in(taken).items()
    return [*taken, suite_of({label: [key] for key, label in keys})]


CASES: dict[str, Any] = {
    "leaderboard": leaderboard,
    "isoflop": isoflop,
    "depths": of_depths,
    "downstream": downstream,
}


@pytest.mark.parametrize("case", [*CASES, "timings"])
def test_pages_and_tables_are_those_that_were_read(
    case: str, tmp_path: Path, make: Make, request: pytest.FixtureRequest
) -> None:
    if case == "timings":
        store(tmp_path, [], *timings())
    else:
        store(tmp_path, CASES[case](make) if case in ("isoflop", "depths") else CASES[case]())
    write_report(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix in (".md", ".csv")}
    if case in ("isoflop", "depths"):
        del made["leaderboard.csv"]  # long, and of the same columns as another's
    folder = GOLDEN / case
    if request.config.getoption("--accept"):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for name, text in made.items():
            (folder / name).write_text(text)
    assert made == {path.name: path.read_text() for path in folder.iterdir()}
