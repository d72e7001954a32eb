"""The command `modbench time`."""

from pathlib import Path

from modbench.cli.options import (
    Budgets,
    Count,
    Labels,
    Plugins,
    Results,
    Seeds,
    Settings,
    Suite,
    flat,
    suite_settings,
)


def time(
    suite: Suite,
    /,
    *,
    results: Results = Path("my-results"),
    plugin: Plugins = (),
    only: Labels = (),
    set: Settings = (),
    seeds: Seeds = None,
    budget: Budgets = None,
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
        set: settings in place of those of the suite file, such as train.learning_rate=3e-3
        seeds: seeds in place of the suite's, such as 0,1
        budget: training FLOPs of a run in place of the suite's budgets, such as 1e12
        repetitions: processes per scheme; by default the suite's value
        again: start a new run even if the last one is complete
    """
    from modbench.sweep.timings import time_suite

    return time_suite(
        suite,
        settings=suite_settings(set, seeds, budget),
        results=results,
        plugins=flat(plugin),
        only=flat(only),
        repetitions=repetitions,
        again=again,
    )
