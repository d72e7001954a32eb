"""The command `modbench time`."""

from pathlib import Path

from modbench.cli.hub_folder import refuse_hub_folder
from modbench.cli.options import Count, Labels, Plugins, Results, Suite, flat


def time(
    suite: Suite,
    /,
    *,
    results: Results = Path("my-results"),
    plugin: Plugins = (),
    only: Labels = (),
    repetitions: Count = None,
    again: bool = False,
) -> int:
    """Measure time and memory of a suite's schemes without training, each in fresh processes, together
    with the machine's own ceilings. An earlier run on this machine that was stopped is completed first.

    Example: modbench time quick --repetitions 3

    Args:
        suite: name of a shipped suite (`modbench list suites`) or path of a TOML file
        results: folder that holds one folder per suite
        plugin: Python files that register routers; a router that the suite does not name gets a row
        only: labels of the rows to time; by default all
        repetitions: processes per scheme; by default the suite's value
        again: start a new run even if the last one is complete
    """
    refuse_hub_folder(suite, "time")
    from modbench.sweep.timings import time_suite

    return time_suite(
        suite,
        results=results,
        plugins=flat(plugin),
        only=flat(only),
        repetitions=repetitions,
        again=again,
    )
