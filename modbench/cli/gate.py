"""The command `modbench flops gate`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from modbench.cli.options import Plugins, Several, flat


def gate(
    *,
    accept: bool = False,
    golden: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    plugin: Plugins = (),
    router: Annotated[Several[str], arg(metavar="NAME ...", help_behavior_hint="")] = (),
) -> int:
    """Compare the FLOPs of routers on reference shapes with a committed table, exactly. The exit code
    is 1 if a count changed, is missing or is new.

    Example: modbench flops gate --plugin my_router.py --golden my_router.flops.json

    Args:
        accept: write the table instead of comparing
        golden: the table, a JSON file; by default the table of the built-in routers
        plugin: Python files whose routers are compared; by default the built-in routers are
        router: names of routers, such as those of an installed package, that are compared
    """
    from modbench.accounting.gate import GOLDEN, run_gate

    return run_gate(golden or GOLDEN, plugins=flat(plugin), routers=flat(router), accept=accept)
