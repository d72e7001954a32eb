"""A row of the table with its place in it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from modbench.records.record import canonical_json
from modbench.report.leaderboard.row import Row

#: Router of the dense model.
DENSE = "vanilla"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row and its position in the order of the figures, from 1, which alone claims nothing.
    ``position`` is None for a row that may not be ranked, with the reason in ``unranked``, and for sizes
    of a scheme that aren't its best. ``note``: the reason, and remarks."""

    row: Row
    scheme: str  #: name of the scheme, without shape and budget
    comparison: int
    position: int | None
    note: str
    unranked: str
    best_size: bool = True  #: of the scheme, among the sizes that can be ranked
    sizes: int = 1  #: of the scheme that can be ranked
    edge: str = ""  #: smallest or largest, if the best of several sizes is that


def dense_entry(entries: Sequence[Entry]) -> Entry | None:
    """The dense row of a comparison: of the entries with the router `DENSE`, at their best size, the
    first in the order of the suite, those of the shape that most rows have before others. None if there
    is no such row."""
    shapes = Counter(canonical_json(entry.row.model) for entry in entries)
    common = max(shapes.values(), default=0)

    def order(entry: Entry) -> tuple[bool, int, str]:
        is_common = shapes[canonical_json(entry.row.model)] == common
        return not is_common, entry.row.first.row_number, entry.row.label

    dense = (entry for entry in entries if entry.best_size and entry.row.run.router.name == DENSE)
    return min(dense, key=order, default=None)
