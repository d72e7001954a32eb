"""The command `modbench run`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from modbench.cli.options import Requests, Suite, SuiteOptions, Tasks, flat, names_of, requested
from modbench.sweep.request import EngineName, RunRequest


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of the runs."""

    #: runs to train at the same time; 0, the default: one per core, or one per GPU; with --engine slurm
    #: or ray as many as it grants
    workers: Annotated[int, arg(metavar="N", help_behavior_hint="")] = 0
    #: tasks to score the trained runs on (modbench docs evaluation); nothing is trained
    measure: Tasks = ()
    #: what runs the jobs: processes of this machine; inline: this process, one job after the other, for
    #: breakpoint() in a router; Slurm or Ray (modbench docs clusters)
    engine: EngineName = "local"
    #: what each job asks of --engine slurm, by options of sbatch such as partition=gpu gpus=1, or of
    #: ray: num_gpus=1
    request: Requests = ()
    dry_run: bool = False  #: print the script of --engine slurm and submit nothing
    #: record nothing; take two steps of each scheme's smallest run, and count and measure the memory of
    #: a pass of its largest
    rehearse: Annotated[bool, arg(help_behavior_hint="")] = False
    #: try again what ran out of memory, too; what failed is tried again anyway
    retry: Annotated[bool, arg(help_behavior_hint="")] = False


def run(
    suite: Suite, /, *, common: OmitArgPrefixes[SuiteOptions], execution: OmitArgPrefixes[RunOptions]
) -> int:
    """Train and measure what has no record yet of a suite, then write its table and plots.

    Example: modbench run quick --plugin my_router.py

    Args:
        suite: name of a shipped suite (`modbench list suites`) or path of a TOML file
        common: results, routers, and values in place of those of the suite file
        execution: options of the runs
    """
    request = RunRequest(
        **common.asked(suite),
        workers=execution.workers,
        measure=names_of(execution.measure),
        retry=execution.retry,
        engine=execution.engine,
        resources=requested(flat(execution.request)),
        dry_run=execution.dry_run,
        rehearse=execution.rehearse,
    )
    from modbench.sweep.run import run_suite  # loads torch

    return run_suite(request)
