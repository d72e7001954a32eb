"""The verb `time`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from modbench.cli.flops import Plugins

Results = Annotated[Path, arg(metavar="DIR")]


def time(
    suite: Annotated[Positional[str], arg(metavar="SUITE")],
    /,
    *,
    results: Results = Path("results"),
    plugin: Plugins = (),
    only: Annotated[tuple[str, ...], arg(metavar="LABEL ...", help_behavior_hint="")] = (),
    repetitions: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    again: bool = False,
) -> int:
    """Time and weigh a suite's schemes untrained, each in fresh processes, beside the machine's own
    ceilings; what an earlier run on this machine left is done first.

    Example: modbench time quick --repetitions 3

    Args:
        suite: a shipped suite's name (`modbench list suites`) or the path of a TOML file
        results: folder that holds one folder per suite
        plugin: Python files that register routers; those that the suite doesn't name become rows
        only: rows to time; by default all
        repetitions: processes of each scheme; by default what the suite says
        again: begin another run, though the last one is done
    """
    from modbench.sweep.timings import time_suite

    return time_suite(
        suite, results=results, plugins=plugin, only=only, repetitions=repetitions, again=again
    )
