"""The frame of pairs: a row for each comparison of two schemes, in whatever figure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from modbench.analysis.difference import Difference, judge

if TYPE_CHECKING:
    import pandas as pd

#: Columns and their types. The value is that of ``scheme`` minus that of ``other``, with the 95 %
#: interval ``low`` to ``high`` and the p-values of this one comparison: of no difference, and
#: ``p_equivalent`` of one as large as the margin. ``p_adjusted`` and ``verdict`` are adjusted for the
#: number of comparisons in its ``family``, and missing without one. ``pairs``: blocks, those seeds that
#: both have; of pairs that a suite states, those ``split`` between processor types, and those ``lost``,
#: since a run diverged or failed.
COLUMNS = {
    "comparison": "Int64",
    "budget": "Int64",
    "depth": "Int64",
    "scheme": "string",
    "other": "string",
    "metric": "string",
    "family": "string",
    "value": "Float64",
    "low": "Float64",
    "high": "Float64",
    "p": "Float64",
    "p_adjusted": "Float64",
    "p_equivalent": "Float64",
    "verdict": "string",
    "no_verdict_because": "string",
    "margin": "Float64",
    "degrees_of_freedom": "Float64",
    "pairs": "Int64",
    "split": "Int64",
    "lost": "Int64",
    "runs": "Int64",
    "lower_in": "Int64",
    "per_efold_of_size": "Float64",
    "at_optima": "Float64",
    "at_optima_low": "Float64",
    "at_optima_high": "Float64",
    "same_processor": "boolean",
}
#: Names of a pair, and its difference before the verdict; None: it can't be compared.
Pair = tuple[Mapping[str, Any], Difference | None]


def pairs_frame(pairs: Iterable[Pair], better: Literal["lower", "higher"] = "lower") -> "pd.DataFrame":
    """The frame of ``pairs`` in their order, with verdicts adjusted within each ``family`` (Holm). A
    pair without a family is not tested. The names may hold all columns that a difference doesn't."""
    import pandas as pd

    pairs = list(pairs)
    families: dict[str, dict[int, Difference]] = defaultdict(dict)
    for number, (names, difference) in enumerate(pairs):
        if difference is not None:
            families[names.get("family") or ""][number] = difference
    judged: dict[int, Difference] = families.pop("", {})
    for of_family in families.values():
        judged |= zip(of_family, judge([*of_family.values()], better), strict=True)
    rows = [pair_row(names, judged.get(number)) for number, (names, _) in enumerate(pairs)]
    return typed(pd.DataFrame(rows, columns=[*COLUMNS], dtype=object), COLUMNS)


def typed(frame: "pd.DataFrame", types: Mapping[str, str]) -> "pd.DataFrame":
    """``frame`` with its columns of ``types``. Columns of objects keep integers that a float can't hold;
    budgets from 9.3e18 FLOPs on are too large for Int64."""
    is_large = "budget" in frame and max(frame["budget"].dropna(), default=0) >= 2**63
    return frame.astype({**types, **({"budget": "Float64"} if is_large else {})})


def pair_row(names: Mapping[str, Any], difference: Difference | None) -> dict[str, Any]:
    """The row of one pair."""
    if difference is None:
        return dict(names)
    low, high = difference.interval or (None, None)
    return {
        "value": difference.value,
        "low": low,
        "high": high,
        "p": difference.p,
        "p_adjusted": difference.p_adjusted,
        "p_equivalent": difference.p_equivalent,
        "verdict": difference.verdict,
        "no_verdict_because": difference.untold or None,
        "degrees_of_freedom": difference.freedom,
        "pairs": difference.pairs,
        **{name: value for name, value in names.items() if name != "family" or value},
    }
