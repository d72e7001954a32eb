"""The command `modbench report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from modbench.cli.messages import tell
from modbench.cli.options import Results
from modbench.errors import UserError

#: Pages that a report writes.
_PAGES = ("leaderboard.md", "timings.md")


def report(
    suites: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[SUITE ...]", help_behavior_hint="")
    ] = (),
    /,
    *,
    results: Results = Path("my-results"),
    html: Annotated[bool, arg(help_behavior_hint="")] = False,
    csv: Annotated[bool, arg(help_behavior_hint="")] = False,
    png: Annotated[bool, arg(help_behavior_hint="")] = False,
    submissions: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None,
    check: bool = False,
) -> int:
    """Write tables and plots from the records again; the same records give the same bytes.

    Example: modbench report quick --results results --html

    Args:
        suites: suites in the results folder, or paths of their folders; by default all
        results: folder that holds one folder per suite
        html: write index.html too, a page for a browser, and the index over all suites; a page that is
            there is always kept up to date
        csv: write the tables in CSV only; pages and figures are left as they are
        png: write the figures in PNG too, such as for slides
        submissions: folder of submissions (modbench docs submitting), whose rows join those of the
            suite that each names
        check: write nothing; exit with 1 if a file differs from what the records give, and name the
            first byte
    """
    from modbench.records.store import recorded_suites
    from modbench.report.write import write_report

    folders = [_suite_folder(name, results) for name in suites]
    folders = folders or [results / name for name in recorded_suites(results)]
    if not folders:
        raise UserError(
            f"results folder {results} holds no records; make some with `modbench run quick`"
        )
    if csv and (html or png or check):
        raise UserError("--csv writes tables only; leave out --html, --png and --check, or --csv")
    if check:
        return _check(list(dict.fromkeys(folders)), submissions, all_suites=not suites)
    for folder in dict.fromkeys(folders):
        report = write_report(folder, submissions, html=html, csv=csv, png=png, say=tell)
        for path in report.paths:
            print(path)
    return 0


def _suite_folder(name: str, results: Path) -> Path:
    from modbench.records.named import folder_of

    folder, row = folder_of(name, results)
    if row:
        raise UserError(f"{name}: a report is of a whole suite; name its folder {folder}")
    return folder


def _check(folders: Sequence[Path], submissions: Path | None, *, all_suites: bool) -> int:
    """Compare the files of ``folders``, and the index next to them; of ``all_suites``, those without
    a page are left out."""
    from modbench.report.write import first_difference, index_difference

    different = False
    for folder in folders:
        if all_suites and not any((folder / page).exists() for page in _PAGES):
            print(f"{folder}: no tables were written yet")
            continue
        sentence = first_difference(folder, submissions, say=tell)
        print(sentence or f"{folder}: equal to what the records give")
        different |= sentence is not None
    for results in dict.fromkeys(folder.parent for folder in folders):
        if sentence := index_difference(results):
            print(sentence)
            different = True
    return 1 if different else 0
