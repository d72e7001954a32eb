from pathlib import Path

from modbench.records.finished import finished
from modbench.records.result import results_of
from modbench.records.store import read_suite, recorded_suites

_RESULTS = Path(__file__).parents[2] / "results"


def test_a_report_on_all_committed_results_adds_no_page():
    assert all((_RESULTS / suite / "leaderboard.md").exists() for suite in recorded_suites(_RESULTS))


def test_every_committed_line_is_valid():
    for suite in sorted(path.parent for path in _RESULTS.rglob("records")):
        found = read_suite(suite)
        assert found.runs, f"{suite} holds no run"
        keys = {run.key for run in found.runs}
        assert {run.audit_key for run in found.runs} <= {None, *found.audits}
        assert {one.measurement.run for one in found.measurements} <= keys
        assert {one.key for one in finished(suite)} >= keys
        named = {key for record in found.suites for row in record.suite.rows for key in row.runs}
        assert keys <= named, f"{suite} holds a run that no suite names"
        for result in results_of(found):
            assert result.run.key == result.key, f"{suite}: key of {result.label}"
            assert (result.status != "ok") or "heldout_loss" in result.metrics
