"""Expands a suite into cells: one per scheme, shape, budget and seed, with every option resolved.

A cell is plain JSON; the hash of its canonical form is the key of its record.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from modbench.errors import UserError, known_names
from modbench.sweep.rows import RefusedError, Rows, labels_of
from modbench.train.config import TrainConfig

Cell = dict[str, Any]


def expand(rows: Rows) -> list[Cell]:
    """Return the cells of ``rows`` in the suite's order. A plugin's router that can't take a shape is
    added to the mistakes of ``rows``, and its cells are left out.

    Raises:
        UserError: a built-in router can't take a shape, or a budget is smaller than one training step;
            the sentence starts with the suite.
    """
    suite, cells = rows.suite, list[Cell]()
    for number, shape in enumerate(suite.shapes):
        for scheme in suite.schemes:
            row = rows.resolved.get(scheme.label)
            if row is None:  # its plugin has a mistake
                continue
            label, flops = labels_of(scheme.label, suite)[number], row.flops[number]
            if isinstance(flops, str):
                mistake = RefusedError(f"suite {suite.source}: row '{label}': {flops}", [label])
                if row.plugin is None:
                    raise mistake
                rows.mistakes.append(mistake)
                continue
            router = {
                "name": row.name,
                "options": row.options,
                "plugin_sha256": row.plugin_sha256,
                "label": label,
            }
            for budget in suite.axes.budgets:
                if budget < flops:
                    raise UserError(
                        f"suite {suite.source}: [sweep] budgets: budget {budget:g} is smaller than one "
                        f"training step of '{label}', which takes {flops:g} FLOPs; raise it there, or "
                        "shrink batch, sequence or model"
                    )
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
    # With lists for tuples, as specifications and records have them.
    return json.loads(json.dumps(cells))  # type: ignore[no-any-return]


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


def title(cell: Cell, among: Sequence[Cell]) -> str:
    """The displayed name of ``cell``: its label, with budget and seed if those differ in ``among``."""
    words = [cell["router"]["label"]]
    if len({other["train"]["budget"] for other in among}) > 1:
        words.append(f"{cell['train']['budget']:.3g} FLOPs")
    if len({other["seed"] for other in among}) > 1:
        words.append(f"seed {cell['seed']}")
    return ", ".join(words)
