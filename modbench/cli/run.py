"""The command `modbench run`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from modbench.cli.options import (
    Budgets,
    Labels,
    Plugins,
    Requests,
    Results,
    Seeds,
    Settings,
    Suite,
    Tasks,
    flat,
    names_of,
    requested,
    suite_settings,
)


def run(
    suite: Suite,
    /,
    *,
    results: Results = Path("my-results"),
    plugin: Plugins = (),
    workers: Annotated[int, arg(metavar="N", help_behavior_hint="")] = 0,
    only: Labels = (),
    measure: Tasks = (),
    set: Settings = (),
    seeds: Seeds = None,
    budget: Budgets = None,
    wait: bool = True,
    shard: Annotated[str | None, arg(metavar="K/N", help_behavior_hint="")] = None,
    engine: Literal["local", "inline", "slurm", "ray"] = "local",
    request: Requests = (),
    dry_run: bool = False,
    rehearse: Annotated[bool, arg(help_behavior_hint="")] = False,
    retry: Annotated[Literal["oom"] | None, arg(help_behavior_hint="")] = None,
) -> int:
    """Train and measure what has no record yet of a suite, then write its table and plots.

    Example: modbench run quick --plugin my_router.py

    Args:
        suite: name of a shipped suite (`modbench list suites`) or path of a TOML file
        results: folder that holds one folder per suite
        plugin: Python files that register routers; a router that the suite does not name gets a row
        workers: runs to train at the same time; 0, the default: one per core, or one per GPU; with
            --engine slurm or ray as many as it grants
        only: labels of the rows to run, or names of runs such as mod@1e11#0; by default all
        measure: tasks to score the trained runs on (modbench docs evaluation); nothing is trained
        set: settings in place of those of the suite file, such as train.learning_rate=3e-3
        seeds: seeds in place of the suite's, such as 0,1
        budget: training FLOPs of a run in place of the suite's budgets, such as 1e12
        wait: pause training while another process of modbench measures on this machine
        shard: run every N-th run only, such as 2/4, on machines without a common folder; join the
            records with `modbench merge`
        engine: what runs the jobs: processes of this machine; inline: this process, one job after the
            other, for breakpoint() in a router; Slurm or Ray (modbench docs clusters)
        request: what each job asks of --engine slurm, by options of sbatch such as partition=gpu gpus=1,
            or of ray: num_gpus=1
        dry_run: print the script of --engine slurm and submit nothing
        rehearse: record nothing; take two steps of each scheme's smallest run, and count and weigh a
            pass of its largest
        retry: oom: try again what ran out of memory; it is tried again anyway with fewer workers or on
            another GPU
    """
    from modbench.sweep.unchanged import Said, digest_of

    arguments: dict[str, Any] = {
        "settings": suite_settings(set, seeds, budget),
        "plugins": flat(plugin),
        "workers": workers,
        "only": flat(only),
        "measure": names_of(measure),
        "retry_oom": retry is not None,
        "wait": wait,
        "shard": shard,
        "engine": engine,
        "request": requested(flat(request)),
    }
    trial: dict[str, Any] = {"dry_run": dry_run, "rehearsed": rehearse}
    if not any(trial.values()) and Said.again(digest_of(suite, results, arguments)):
        return 0
    from modbench.sweep.run import run_suite  # loads torch

    with Said() as said:
        code = run_suite(suite, results=results, said=said, **arguments, **trial)
    if code == 0 and not any(trial.values()):
        said.keep(digest_of(suite, results, arguments))
    return code
