"""The command `modbench run`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from modbench.cli.hub_folder import refuse_hub_folder
from modbench.cli.options import Labels, Plugins, Results, Suite, flat


def run(
    suite: Suite,
    /,
    *,
    results: Results = Path("my-results"),
    plugin: Plugins = (),
    workers: Annotated[int, arg(metavar="N", help_behavior_hint="")] = 0,
    only: Labels = (),
) -> int:
    """Train and measure the cells of a suite that have no record yet, then write its table and plots.

    Example: modbench run quick --plugin my_router.py

    Args:
        suite: name of a shipped suite (`modbench list suites`) or path of a TOML file
        results: folder that holds one folder per suite
        plugin: Python files that register routers; a router that the suite does not name gets a row
        workers: cells to run at the same time; 0, the default: one per core, or one on a GPU
        only: labels of the rows to run; by default all
    """
    refuse_hub_folder(suite, "run")
    from modbench.sweep.run import run_suite

    return run_suite(suite, results=results, plugins=flat(plugin), workers=workers, only=flat(only))
