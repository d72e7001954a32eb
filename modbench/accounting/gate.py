"""The FLOP gate: compares each router's FLOPs on reference shapes with a committed table, by ==.

A changed closed form is either intended, then the new table is accepted and the commit says why, or a
bug.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from modbench.accounting.literature import ALL_CONVENTIONS, flops_under, reading
from modbench.errors import UserError
from modbench.ledger import PHASES, Workload
from modbench.model.sizes import SIZES, Size
from modbench.routing.build import meta_decoder
from modbench.routing.registry import installed_modules, load_plugin, router_class

#: The table of the built-in routers.
GOLDEN = Path(__file__).with_name("golden.json")

#: Shapes by name, with the tokens of the one sequence that is counted; decoding has as many cached.
SHAPES: Mapping[str, Size] = {
    "1M": SIZES["1M"],
    "124M": replace(SIZES["124M"], sequence=1000),
    "7B": SIZES["7B"],
}

Table = dict[str, int]


def built_in() -> list[str]:
    """Return the routers of this package, without installed plugins."""
    return [name for name, module in installed_modules().items() if module.startswith("modbench.")]


def current(routers: Sequence[str]) -> Table:
    """Compute the nominal FLOPs of one sequence by ``router/shape/phase/convention``, for each router
    with its defaults and with each of its presets (``router:preset``)."""
    table: Table = {}
    presets = [f"{name}:{preset}" for name in routers for preset in router_class(name).presets]
    for name, (shape, size) in itertools.product([*routers, *presets], SHAPES.items()):
        decoder = meta_decoder(name, {}, size.model)
        read = reading(decoder)
        for phase in PHASES:
            past = size.sequence if phase == "decode" else 0
            workload = Workload.uniform(1, size.sequence, phase, past)
            ledger = decoder.ledger(workload)
            for convention in ALL_CONVENTIONS:
                key = f"{name}/{shape}/{phase}/{convention}"
                table[key] = flops_under(convention, ledger, read, workload)
    return table


def differences(golden: Table, now: Table) -> list[list[str]]:
    """Return a row for each key that changed, is missing or is new, with old and new values."""
    rows = []
    for key in sorted({*golden, *now}):
        old, new = golden.get(key), now.get(key)
        if old != new:
            what = "new" if old is None else "missing" if new is None else "changed"
            change = f"{new / old - 1:+.4%}" if old and new is not None else ""
            rows.append([what, key, *("-" if v is None else f"{v:,}" for v in (old, new)), change])
    return rows


def run_gate(
    golden: Path,
    *,
    plugins: Sequence[Path] = (),
    routers: Sequence[str] = (),
    accept: bool = False,
) -> int:
    """Compare the table at ``golden`` with the current FLOPs of ``routers`` and of those that
    ``plugins`` register, or of the built-in ones. Print the differences; return 1 if there are any, else
    0. ``accept`` writes the new table instead. Raise a `UserError` if the table is missing, malformed or
    not writable, a plugin fails, or a router is unknown."""
    if (plugins or routers) and golden == GOLDEN:
        flag = "--plugin" if plugins else "--router"
        raise UserError(f"{flag} needs --golden FILE: a plugin's counts stand in a table of their own")
    named = [name for plugin in plugins for name in load_plugin(plugin)] + [*routers]
    known = {} if accept else _read(golden)
    now = current(named or built_in())
    if accept:
        try:
            golden.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise UserError(f"FLOP table {golden} can't be written ({error.strerror})") from error
        print(f"{len(now)} FLOP counts accepted into {golden}")
        return 0
    rows = differences(known, now)
    if rows:
        heads = ["", "router/shape/phase/convention", "old", "new", ""]
        align = ("left", "left", "right", "right", "right")
        print(tabulate(rows, heads, "plain", disable_numparse=True, colalign=align))
        print(f"{len(rows)} FLOP counts differ from {golden}; if that is meant, add --accept")
        return 1
    print(f"{len(now)} FLOP counts equal {golden}")
    return 0


def _read(golden: Path) -> Table:
    try:
        table = json.loads(golden.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"FLOP table {golden} can't be read ({error}); make it with --accept") from error
    if not isinstance(table, dict) or not all(type(value) is int for value in table.values()):
        raise UserError(f"FLOP table {golden} must map keys to whole numbers; make it with --accept")
    return table
