"""A suite as cells: one per scheme, shape, budget and seed, with every option resolved.

A cell is plain JSON; the hash of its canonical form is the key of its record.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modbench.errors import UserError, known_names
from modbench.sweep.suite import Scheme, Suite, refuse_twins
from modbench.train.config import TrainConfig

Cell = dict[str, Any]


def with_plugins(suite: Suite, plugins: Sequence[Path]) -> Suite:
    """``suite``, with each router that the plugin files register as one more scheme, options at their
    defaults, unless the suite names it already.

    Raises:
        UserError: a file is missing, raises, or registers nothing; a row has its router's name already.
    """
    if not plugins:
        return suite
    from modbench.routing.registry import load_plugin

    named = {scheme.router.partition(":")[0] for scheme in suite.schemes}
    fresh = sorted({name for plugin in plugins for name in load_plugin(plugin)} - named)
    schemes = suite.schemes + tuple(Scheme(router=name) for name in fresh)
    refuse_twins(f"suite {suite.source} with its plugins", [scheme.label for scheme in schemes])
    return replace(suite, schemes=schemes)


def expand(suite: Suite) -> list[Cell]:
    """All cells of ``suite``, in the file's order. Imports the routers, and so torch.

    Raises:
        UserError: an unknown router or option, or a wrong value.
    """
    from modbench.routing.registry import build_router, plugin_sha256, preset_options

    routers = []
    for scheme in suite.schemes:
        try:
            name, preset = preset_options(scheme.router)
            options = build_router(name, {**preset, **scheme.options}).options()
        except UserError as error:
            raise UserError(f"suite {suite.source}: [[schemes]] '{scheme.label}': {error}") from error
        routers.append((name, options))
    cells = []
    for shape in suite.shapes:
        for scheme, (name, options) in zip(suite.schemes, routers, strict=True):
            label = f"{scheme.label}/{shape.label}" if shape.label else scheme.label
            router = {
                "name": name,
                "options": options,
                "plugin_sha256": plugin_sha256(name),
                "label": label,
            }
            for budget in suite.axes.budgets:
                train = TrainConfig(**{**suite.train, **scheme.train, "budget": budget})
                for seed in suite.axes.seeds:
                    cells.append(
                        {
                            "router": router,
                            "model": asdict(shape.model),
                            "data": asdict(suite.data),
                            "train": asdict(train),
                            "measure": asdict(suite.measure),
                            "seed": seed,
                        }
                    )
    return [_plain(cell) for cell in cells]


def plugins_of(cell: Cell) -> list[str]:
    """The plugin files that the processes of ``cell`` load: the one that its router is of, if it is of
    one. What another file changes beside its own routers is no part of this cell."""
    from modbench.routing.registry import plugin_file

    file = plugin_file(cell["router"]["name"]) if cell["router"] is not None else None
    return [] if file is None else [str(file)]


def chosen(cells: Sequence[Cell], labels: Sequence[str]) -> list[Cell]:
    """The cells whose label is in ``labels``; all of them if ``labels`` is empty.

    Raises:
        UserError: no cell has one of the labels.
    """
    known = {cell["router"]["label"] for cell in cells}
    for label in labels:
        if label not in known:
            raise UserError(
                f"--only: no row of the suite is called '{label}'; {known_names(label, known)}"
            )
    return [cell for cell in cells if not labels or cell["router"]["label"] in labels]


def check_budgets(suite: Suite, cells: Sequence[Cell]) -> None:
    """Refuse a budget that doesn't pay for one step, before anything runs.

    Raises:
        UserError: such a cell, or one whose shape its router can't take; the sentence starts with the
            suite.
    """
    from modbench.train.budget import steps_for

    with naming(suite):
        for cell in cells:
            steps_for(cell)


@contextmanager
def naming(suite: Suite) -> Iterator[None]:
    """Put the suite's file before what a cell of it is refused for: shapes and budgets stand there.

    Raises:
        UserError: as raised within.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"suite {suite.source}: {error}") from error


def title(cell: Cell, among: Sequence[Cell]) -> str:
    """What a display calls ``cell``: its label, with budget and seed where those differ in ``among``."""
    words = [cell["router"]["label"]]
    if len({other["train"]["budget"] for other in among}) > 1:
        words.append(f"{cell['train']['budget']:.3g} FLOPs")
    if len({other["seed"] for other in among}) > 1:
        words.append(f"seed {cell['seed']}")
    return ", ".join(words)


def _plain(value: Any) -> Any:
    """``value`` as JSON would give it back: lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
