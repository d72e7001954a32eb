"""Writes the README's generated parts, the table of quick in ``docs/start.md`` and the tables of
``docs/reading_the_table.md``, from the page ``results/quick/leaderboard.md`` and the report's columns:
``python tools/readme_table.py``; ``--check`` compares only.
"""

import argparse
import json
import sys
from pathlib import Path

from results_page import answer
from suite_keys import filled

from modbench.records.store import read_suite
from modbench.report.leaderboard.columns import FIRST, MORE, column_table

ROOT = Path(__file__).parents[1]
LEADERBOARD = ROOT / "results" / "quick" / "leaderboard.md"
README = ROOT / "README.md"
START = ROOT / "docs" / "start.md"
READING = ROOT / "docs" / "reading_the_table.md"


def first_table() -> list[str]:
    """The lines of the first table of the committed page: heading, rule, a row for each scheme."""
    table = LEADERBOARD.read_text().partition("\n| ")
    return (table[1] + table[2]).partition("\n\n")[0].strip().splitlines()


def costs() -> str:
    """Disk and memory of the first command (`tools/costs.json`); minutes by the committed records."""
    measured = json.loads((ROOT / "tools" / "costs.json").read_text())
    records = read_suite(LEADERBOARD.parent)
    spent = [record.seconds or {} for record in (*records.runs, *records.measurements)]
    minutes = sum(sum(of_step.values()) for of_step in spent) / 2 / 60
    (cpu,) = {record.environment["cpu"] for record in records.runs}
    gigabytes = {name: of / 1e9 for name, of in measured.items() if name.endswith("bytes")}
    return (
        "| | disk, PyTorch included | memory | time on two cores |\n| --- | --- | --- | --- |\n"
        f"| `bench` | {gigabytes['environment_bytes']:.1f} GB in `.nox/` | "
        f"{gigabytes['memory_bytes']:.0f} GB | {measured['install_seconds'] / 60:.0f} minutes of CPU to "
        f"install, then {minutes:.0f} ({cpu}, which had other work, too) |\n"
        f"| `tests` | {gigabytes['developers_environment_bytes']:.1f} GB, its own | up to 2 GB "
        f"for each of up to 4 processes | {measured['tests_seconds'] / 60:.0f} minutes, idle |"
    )


def texts() -> dict[str, str]:
    """The tables by their name in the pages."""
    table = first_table()
    row = next(line for line in table if "mod" in line.strip("| ").split(" | ")[:2])
    return {
        "finding": answer("docs/depth.md"),
        "costs": costs(),
        "quick": "\n".join(table),
        "row": "\n".join([*table[:2], row]),
        "columns": column_table(FIRST).to_markdown(),
        "more columns": column_table(MORE).to_markdown(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the tables of these pages.")
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    only_check, code = parser.parse_args().check, 0
    for page in (README, START, READING):
        text = filled(page.read_text(), texts())
        if only_check and text != page.read_text():
            print(f"{page.name} differs; run python tools/readme_table.py", file=sys.stderr)
            code = 1
        elif not only_check:
            page.write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
