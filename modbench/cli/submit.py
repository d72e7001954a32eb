"""The command `modbench submit`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from modbench.cli.messages import tell
from modbench.cli.options import Results


def submit(
    row: Annotated[Positional[str], arg(metavar="ROW")],
    /,
    *,
    out: Annotated[Path, arg(metavar="DIR")],
    author: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")],
    licence: Annotated[str, arg(metavar="SPDX")],
    suite: str = "board",
    title: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    paper: Annotated[str | None, arg(metavar="URL", help_behavior_hint="")] = None,
    plugin: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    results: Results = Path("my-results"),
    board: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None,
) -> int:
    """Write a row of your own as a submission to a board: code, records and what you say of it. What
    `modbench check-submission` would refuse is refused here.

    Example: modbench submit my_router --author "A. Author" --licence MIT --out submissions/my-router

    Args:
        row: label of the row in the results
        out: folder to write; its name names the row on the board
        author: one of the authors; repeat it for each
        licence: of the code, by its SPDX name such as MIT
        suite: suite that the row was run in
        title: what the router does, in a few words; by default the row's label
        paper: address of the paper, https://...
        plugin: the router's file; by default its installed package is stated
        results: folder that holds one folder per suite
        board: folder of the board's records; by default results/SUITE
    """
    from modbench.submission.submit import Request
    from modbench.submission.submit import submit as write

    request = Request(
        row=row,
        suite=suite,
        results=results,
        board=board or Path("results", suite),
        plugin=plugin,
        title=title,
        authors=author,
        licence=licence,
        paper=paper,
        out=out,
    )
    code = write(request, tell)
    print(out)
    return code
