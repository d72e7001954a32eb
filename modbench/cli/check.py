"""The command `modbench check`."""

from typing import Annotated

from tyro.conf import Positional, arg

from modbench.cli.options import RouterOptions, parsed_options


def check(
    router: Annotated[Positional[str], arg(metavar="FILE|NAME")],
    name: Annotated[
        Positional[str | None], arg(metavar="[NAME[:PRESET]]", help_behavior_hint="")
    ] = None,
    /,
    *,
    option: RouterOptions = (),
    seed: int = 0,
) -> int:
    """Try a new router in under a minute: FLOPs, the audit and 20 training steps, all at a small shape,
    next to the dense model. The exit code is 1 if a probe fails.

    Example: modbench check my_router.py

    Args:
        router: Python file that registers routers, or the name of a router (`modbench list routers`)
        name: which router of the file, if it registers several; by default each of them
        option: options of the router; by default its defaults
        seed: seed of weights, tokens and batches
    """
    from modbench.measure.check import run_check

    return run_check(router, name, options=parsed_options(option), seed=seed)
