"""Prints what one H100 is expected to give in `nox -s bench-gpu`, next to what was measured:
``python tools/gpu_estimates.py my-results-gpu/gpu``. docs/timing.md shows the same estimates.
"""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

from modbench.report.table import Table

ESTIMATES = Path(__file__).parents[1] / "docs" / "gpu_estimates.csv"
#: FLOP/s of an H100 SXM in bfloat16, by its data sheet.
PEAK = 989e12

Line = Mapping[str, str]


def estimates() -> list[Line]:
    """The lines of the table of estimates."""
    with ESTIMATES.open(newline="") as file:
        return list(csv.DictReader(file))


def measured(timings: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The quantities of the training steps in ``timings``, by row and number of sequences; none without
    the file."""
    if not timings.is_file():
        return {}
    with timings.open(newline="") as file:
        steps = [line for line in csv.DictReader(file) if line["case"] == "train"]
    seconds = {_row(line): float(line["seconds_median"]) for line in steps if line["seconds_median"]}
    found = dict[tuple[str, str], dict[str, str]]()
    for line in steps:
        row = _row(line)
        if row in seconds:
            used = int(line["flops_nominal"]) / seconds[row] / PEAK
            found[row] = {
                "training step (ms)": f"{1e3 * seconds[row]:.1f}",
                "share of 989 TFLOP/s (%)": f"{100 * used:.1f}",
            }
            dense = seconds.get((f"vanilla/{line['shape']}", line["sequences"]))
            if dense:
                found[row]["step over vanilla"] = f"{seconds[row] / dense:.2f}"
            if efficiency := line.get(
                "realised_efficiency"
            ):  # a column that is empty in all is not there
                found[row]["realised efficiency"] = f"{float(efficiency):.2f}"
    return found


def _row(line: Line) -> tuple[str, str]:
    """The row's name in its suite, and the number of sequences."""
    return f"{line['label']}/{line['shape']}", line["sequences"]


def table(timings: Path | None = None) -> str:
    """The estimates in Markdown; with those that ``timings`` (timings.csv) has, if it is given."""
    lines = estimates()
    heads, cells = [*lines[0]], [[text or "-" for text in line.values()] for line in lines]
    if timings:
        of = measured(timings)
        heads.append("measured")
        for line, row in zip(lines, cells, strict=True):
            row.append(of.get((line["row"], line["sequences"]), {}).get(line["quantity"], "-"))
    return Table(heads, cells, left=(0, 2)).to_markdown()


def main(folder: str) -> int:
    print("Estimates for one H100 SXM, from reading the code; no GPU has confirmed them.\n")
    print(table(Path(folder, "timings.csv")))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
