"""What a board says of the rows that were submitted: who they are from, and where their code is."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from modbench.records.submission import Submission
from modbench.report.table import Link, Table
from modbench.report.times import processor_types


def submitted_frame(submissions: Sequence[Submission], board: Path) -> pd.DataFrame:
    """A row for each of ``submissions``: what it states, on which types of processor it ran, and its
    folder as seen from ``board``."""
    rows = []
    for of in submissions:
        stated = of.stated
        ran = processor_types(run.record.environment for run in of.results)
        rows.append(
            {
                "scheme": of.name,
                "title": stated.title,
                "authors": ", ".join(stated.authors),
                "paper": stated.paper,
                "licence": stated.licence,
                "claim": stated.claim,
                "processor": "; ".join(ran),
                "code": stated.file or stated.package,
                "folder": Path(os.path.relpath(of.folder, board)).as_posix(),
            }
        )
    return pd.DataFrame(rows, dtype="string")


def submitted_table(submissions: Sequence[Submission], board: Path) -> Table | None:
    """The table of `submitted_frame`, with links; None without submissions."""
    lines = []
    for row in submitted_frame(submissions, board).to_dict("records"):
        paper, folder = row["paper"], row["folder"]
        paper = "-" if pd.isna(paper) else Link(paper.removeprefix("https://"), paper)
        named = {name: row[name] for name in ("scheme", "title", "authors", "licence", "processor")}
        lines.append(named | {"paper": paper, "code and records": Link(str(row["code"]), folder)})
    return Table.of(lines, left=range(7)).about("Rows that were submitted") if lines else None
