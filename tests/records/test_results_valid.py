from pathlib import Path

from modbench.records.store import finished, read_suite

_RESULTS = Path(__file__).parents[2] / "results"


def test_every_committed_line_is_valid():
    for suite in sorted(path.parent for path in _RESULTS.glob("*/records")):
        found = read_suite(suite)
        assert found.cells, f"{suite} holds no cell"
        assert not found.cut
        assert {cell.audit_key for cell in found.cells} <= {None, *found.audits}
        assert {one.key for one in finished(suite)} >= {cell.key for cell in found.cells}
