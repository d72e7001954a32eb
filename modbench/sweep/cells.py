"""Expands a suite into cells: one per scheme, shape, budget and seed, with every option resolved.

A cell is plain JSON; the hash of its canonical form is the key of its record.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modbench.errors import UserError, known_names
from modbench.sweep.suite import Scheme, Suite, check_labels
from modbench.train.config import TrainConfig

Cell = dict[str, Any]
_REGISTERS = re.compile(r"""register_router\(\s*["']([^"']+)""")


class RefusedError(UserError):
    """A plugin's mistake, for which the rows called ``labels`` are left out."""

    def __init__(self, sentence: str, labels: Iterable[str]) -> None:
        super().__init__(sentence)
        self.labels = frozenset(labels)


def with_plugins(
    suite: Suite, plugins: Sequence[Path], mistakes: list[RefusedError] | None = None
) -> Suite:
    """Return ``suite`` with one more scheme, default options, for each router of the plugin files that
    the suite does not name. If ``mistakes`` is given, errors in a file are added to it.

    Raises:
        UserError: a file is missing, raises, or registers nothing; or another row has the router's name.
    """
    if not plugins:
        return suite
    from modbench.routing.registry import load_plugin

    names = set[str]()
    for plugin in plugins:
        try:
            names |= {*load_plugin(plugin)}
        except UserError as error:
            if mistakes is None or not plugin.is_file():
                raise
            registered = _REGISTERS.findall(plugin.read_text(encoding="utf-8", errors="replace"))
            labels = (label for name in registered for label in _labels(name, suite))
            mistakes.append(RefusedError(str(error), labels))
    named = {scheme.router.partition(":")[0] for scheme in suite.schemes}
    fresh = sorted(names - named)
    schemes = suite.schemes + tuple(Scheme(router=name) for name in fresh)
    check_labels(f"suite {suite.source} with its plugins", [scheme.label for scheme in schemes])
    return replace(suite, schemes=schemes)


def expand(suite: Suite, mistakes: list[RefusedError] | None = None) -> list[Cell]:
    """Return all cells of ``suite``, in the file's order. Imports the routers, and so torch. If
    ``mistakes`` is given, those of plugins are added to it, and their cells left out.

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
            sentence = f"suite {suite.source}: [[schemes]] '{scheme.label}': {error}"
            if mistakes is None or not _may_be_of_plugin(scheme, mistakes):
                raise UserError(sentence) from error
            mistakes.append(RefusedError(sentence, _labels(scheme.label, suite)))
            continue
        routers.append((scheme, name, options))
    cells = []
    for number, shape in enumerate(suite.shapes):
        for scheme, name, options in routers:
            label = _labels(scheme.label, suite)[number]
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
    # With lists for tuples, as spec files and records have them.
    return json.loads(json.dumps(cells))  # type: ignore[no-any-return]


def _labels(scheme: str, suite: Suite) -> list[str]:
    """Return the label of the row of each shape of ``suite`` for the scheme labelled ``scheme``."""
    return [f"{scheme}/{shape.label}" if shape.label else scheme for shape in suite.shapes]


def _may_be_of_plugin(scheme: Scheme, mistakes: Sequence[UserError]) -> bool:
    """Return True if the router of ``scheme`` is of a plugin file, or may be of one that was not loaded
    because of its ``mistakes``."""
    from modbench.routing.registry import plugin_file, router_names

    name = scheme.router.partition(":")[0]
    return plugin_file(name) is not None or (bool(mistakes) and name not in router_names())


def plugins_of(cell: Cell) -> list[str]:
    """The plugin files that a process of ``cell`` loads: the file that registered its router, if any."""
    from modbench.routing.registry import plugin_file

    file = plugin_file(cell["router"]["name"]) if cell["router"] is not None else None
    return [] if file is None else [str(file)]


def chosen(
    cells: Sequence[Cell], labels: Sequence[str], mistakes: Sequence[RefusedError] = ()
) -> list[Cell]:
    """The cells whose label is in ``labels``; all of them if ``labels`` is empty. Labels of rows that
    were left out for ``mistakes`` give no cells.

    Raises:
        UserError: no row has one of the labels; or all chosen rows were left out, with the mistake.
    """
    known = {cell["router"]["label"] for cell in cells}
    refused = {label: mistake for mistake in reversed(mistakes) for label in mistake.labels}
    for label in labels:
        if label not in known and label not in refused:
            for mistake in mistakes:
                if not mistake.labels:  # of a file that may have this row
                    raise mistake
            near = known_names(label, {*known, *refused})
            raise UserError(f"--only: no row of the suite is called '{label}'; {near}")
    if mistakes and known.isdisjoint(labels or known):
        raise refused[labels[0]] if labels else mistakes[0]
    return [cell for cell in cells if not labels or cell["router"]["label"] in labels]


def check_budgets(suite: Suite, cells: Sequence[Cell]) -> None:
    """Check that each cell's budget is enough for a step. A plugin's router that builds no model is left
    to the process of its cell, which records the reason, if other cells can go on.

    Raises:
        UserError: a cell's budget is smaller than one step, or its router can't take its shape; the
            sentence starts with the suite.
    """
    from modbench.train.budget import check_steps, step_flops

    unbuilt: list[UserError] = []
    with error_prefix(suite):
        for cell in cells:
            try:
                flops = step_flops(cell)
            except UserError as error:
                if cell["router"]["plugin_sha256"] is None:
                    raise
                unbuilt.append(error)
            else:
                check_steps(cell, flops)
        if unbuilt and len(unbuilt) == len(cells):
            raise unbuilt[0]


@contextmanager
def error_prefix(suite: Suite) -> Iterator[None]:
    """Prefix each UserError raised within with the suite's file, which states shapes and budgets."""
    try:
        yield
    except UserError as error:
        raise UserError(f"suite {suite.source}: {error}") from error


def title(cell: Cell, among: Sequence[Cell]) -> str:
    """The displayed name of ``cell``: its label, with budget and seed if those differ in ``among``."""
    words = [cell["router"]["label"]]
    if len({other["train"]["budget"] for other in among}) > 1:
        words.append(f"{cell['train']['budget']:.3g} FLOPs")
    if len({other["seed"] for other in among}) > 1:
        words.append(f"seed {cell['seed']}")
    return ", ".join(words)
