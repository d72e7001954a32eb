"""The command `modbench time`."""

from tyro.conf import OmitArgPrefixes

from modbench.cli.options import Count, Suite, SuiteOptions


def time(
    suite: Suite,
    /,
    *,
    common: OmitArgPrefixes[SuiteOptions],
    repetitions: Count = None,
    again: bool = False,
) -> int:
    """Measure time and memory of a suite's schemes without training, each in fresh processes, together
    with the machine's own ceilings. An earlier run on this machine that was stopped is completed first.

    Example: modbench time quick --repetitions 3

    Args:
        suite: name of a shipped suite (`modbench list suites`) or path of a TOML file
        common: results, routers, and values in place of those of the suite file
        repetitions: processes per scheme; by default the suite's value
        again: start a new run even if the last one is complete
    """
    from modbench.sweep.request import TimeRequest
    from modbench.sweep.timings import time_suite

    return time_suite(TimeRequest(**common.asked(suite), repetitions=repetitions, again=again))
