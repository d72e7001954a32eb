"""The command `modbench report`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from modbench.cli.messages import tell
from modbench.cli.options import Results
from modbench.errors import UserError, known_names

#: Pages that a report writes.
_PAGES = ("leaderboard.md", "timings.md")


def report(
    suites: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[SUITE ...]", help_behavior_hint="")
    ] = (),
    /,
    *,
    results: Results = Path("my-results"),
    rank_by: Annotated[str | None, arg(metavar="METRIC", help_behavior_hint="")] = None,
    html: Annotated[bool, arg(help_behavior_hint="")] = False,
    csv: Annotated[bool, arg(help_behavior_hint="")] = False,
    png: Annotated[bool, arg(help_behavior_hint="")] = False,
    check: bool = False,
) -> int:
    """Write tables and plots from the records again; the same records give the same bytes.

    Example: modbench report quick --results results --html

    Args:
        suites: suites in the results folder; by default all
        results: folder that holds one folder per suite
        rank_by: metric that ranks the table (`modbench list metrics`); by default the suite's choice
        html: write index.html too, a page for a browser, and the index over all suites; a page that is
            there is always kept up to date
        csv: write the tables in CSV only; pages and figures are left as they are
        png: write the figures in PNG too, such as for slides
        check: write nothing; exit with 1 if a file differs from what the records give, and name the
            first byte
    """
    from modbench.records.store import recorded_suites
    from modbench.report.page import write_report

    known = recorded_suites(results)
    if not known:
        raise UserError(
            f"results folder {results} holds no records; make some with `modbench run quick`"
        )
    for name in suites:
        if name not in known:
            raise UserError(
                f"results folder {results} has no suite '{name}'; {known_names(name, known)}"
            )
    if csv and (html or png or check):
        raise UserError("--csv writes tables only; leave out --html, --png and --check, or --csv")
    if check:
        return _check(results, list(dict.fromkeys(suites)), known, rank_by)
    for name in dict.fromkeys(suites) or known:
        report = write_report(results / name, rank_by=rank_by, html=html, csv=csv, png=png, say=tell)
        for path in report.paths:
            print(path)
    return 0


def _check(results: Path, suites: list[str], known: list[str], rank_by: str | None) -> int:
    """Compare the files of ``suites``, by default of those of ``known`` that have any, and the index."""
    from modbench.report.page import first_difference, index_difference

    different = False
    for name in suites or known:
        folder = results / name
        if name not in suites and not any((folder / page).exists() for page in _PAGES):
            print(f"{folder}: no tables were written yet")
            continue
        sentence = first_difference(folder, rank_by=rank_by, say=tell)
        print(sentence or f"{folder}: equal to what the records give")
        different |= sentence is not None
    if sentence := index_difference(results):
        print(sentence)
    return 1 if different or sentence else 0
