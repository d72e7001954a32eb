"""The command `modbench merge`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from modbench.cli.options import Results
from modbench.errors import UserError, several


def merge(
    folders: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="FOLDER [FOLDER ...]", help_behavior_hint="")
    ] = (),
    /,
    *,
    results: Results = Path("my-results"),
) -> int:
    """Add the records of other machines to a results folder, and name what contradicts.

    Example: modbench merge from-node-1 from-node-2 --results my-results

    Args:
        folders: results folders, or folders of a suite in them
        results: folder to add the records to
    """
    if not folders:
        raise UserError("merge needs folders, such as modbench merge from-node-1 from-node-2")
    from modbench.records.merge import merge as merge_records

    for merged in merge_records(folders, results):
        print(f"{merged.suite}: {several(merged.added, 'record')} added")
        for sentence in merged.conflicts:
            print(f"  {sentence}")
    print("Write the tables again with `modbench report`.")
    return 0
