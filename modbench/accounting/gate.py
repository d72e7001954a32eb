"""The FLOP gate: compares each router's FLOPs on reference shapes with a committed table, by ==.

A changed closed form is either intended, then the new table is accepted and the commit says why, or a
bug.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from modbench.accounting.literature import ALL_CONVENTIONS, flops_under, reading
from modbench.errors import UserError
from modbench.ledger import PHASES, Workload
from modbench.model.config import ModelConfig
from modbench.model.sizes import SIZES, Size
from modbench.routing.build import meta_decoder
from modbench.routing.registry import installed_modules, load_plugin, router_class

#: The table of the built-in routers.
GOLDEN = Path(__file__).with_name("golden.json")

#: Shapes by name, with the tokens of the one sequence that is counted; decoding has as many cached.
#: Default capacities round at 250 and at 1,001 tokens. No width of ``odd`` is a multiple of 16; 8
#: divides ``mlp_width``, since up to 8 experts per token share it.
SHAPES: Mapping[str, Size] = {
    "1M": SIZES["1M"],
    "1M-250": replace(SIZES["1M"], sequence=250),
    "odd": Size(model=ModelConfig(vocabulary=1000, width=200, kv_heads=2), sequence=1001),
    "124M": replace(SIZES["124M"], sequence=1000),
    "7B": SIZES["7B"],
}
#: Key of the first row of a table's file, which names the conventions of the other rows.
_HEAD = "router/shape/phase"

Table = dict[str, int]
#: A key with its old and new count; None: it is new, or missing.
Difference = tuple[str, int | None, int | None]


def built_in() -> list[str]:
    """Return the routers of this package, without installed plugins."""
    return [name for name, module in installed_modules().items() if module.startswith("modbench.")]


def current(routers: Sequence[str]) -> tuple[Table, dict[str, str]]:
    """Compute the nominal FLOPs of one sequence by ``router/shape/phase/convention``, for each router
    with its defaults and with each of its presets (``router:preset``). Return them, and the reason for
    each ``router/shape`` that can't be built or counted."""
    table: Table = {}
    refused: dict[str, str] = {}
    names = list(routers)
    for router in routers:
        with suppress(UserError):  # of an import, which is raised again below
            names += [f"{router}:{preset}" for preset in router_class(router).presets]
    for name, (shape, size) in itertools.product(names, SHAPES.items()):
        counts: Table = {}
        try:
            decoder = meta_decoder(name, {}, size.model)
            read = reading(decoder)
            for phase in PHASES:
                past = size.sequence if phase == "decode" else 0
                workload = Workload.uniform(1, size.sequence, phase, past)
                ledger = decoder.ledger(workload)
                for convention in ALL_CONVENTIONS:
                    key = f"{name}/{shape}/{phase}/{convention}"
                    counts[key] = flops_under(convention, ledger, read, workload)
            table |= counts
        except UserError as error:
            refused[f"{name}/{shape}"] = f"{error} (shape {shape})"
    return table, refused


def differences(golden: Table, now: Table) -> list[Difference]:
    """Return the keys that changed, are missing or are new, with old and new values."""
    found = []
    for key in sorted({*golden, *now}):
        old, new = golden.get(key), now.get(key)
        if old != new:
            found.append((key, old, new))
    return found


def run_gate(
    golden: Path,
    *,
    plugins: Sequence[Path] = (),
    routers: Sequence[str] = (),
    accept: bool = False,
) -> int:
    """Compare the table at ``golden`` with the current FLOPs of ``routers`` and of those that
    ``plugins`` register, or of the built-in ones. Print a summary and the differences; return 1 if there
    are any, or if a router can't be built at a shape of the table or at all, else 0. ``accept`` writes
    the new table instead, unless a router can't be built at all. Raise a `UserError` if the table is
    missing, malformed or not writable, a plugin fails, or a router is unknown."""
    if (plugins or routers) and golden == GOLDEN:
        flag = "--plugin" if plugins else "--router"
        raise UserError(f"{flag} needs --golden FILE: a plugin's counts stand in a table of their own")
    for name in routers:
        router_class(name)
    named = [name for plugin in plugins for name in load_plugin(plugin)] + [*routers]
    known = {} if accept else _read(golden)
    now, refused = current(named or built_in())
    counted = {_router(key) for key in now}
    pinned = {_row(key) for key in known}
    broken = {row for row in refused if row in pinned or _router(row) not in counted}
    if accept:
        if not broken:
            _write(golden, now)
        outcome = f"{len(now)} FLOP counts accepted into {golden}"
        print(f"{golden} is not written: a router can't be built" if broken else outcome)
        _print_refused(refused)
        return 1 if broken else 0
    lost = {key for key in known.keys() - now.keys() if {_row(key), _default_row(key)} & broken}
    found = differences({key: known[key] for key in known.keys() - lost}, now)
    if found:
        print(f"{len(found)} FLOP counts differ from {golden}; if that is meant, add --accept")
    elif not broken:
        print(f"{len(now)} FLOP counts equal {golden}")
    _print_refused(refused)
    if found:
        _print_differences(found)
    return 1 if found or broken else 0


def _router(key: str) -> str:
    return key.partition("/")[0]


def _row(key: str) -> str:
    """Return ``router/shape`` of a key."""
    return key.rsplit("/", 2)[0]


def _default_row(key: str) -> str:
    """Return ``router/shape`` of a key, without the preset."""
    router, _, shape = _row(key).partition("/")
    return f"{router.partition(':')[0]}/{shape}"


def _print_refused(refused: Mapping[str, str]) -> None:
    """Print each reason once, that of a router at its first shape, with the routers that share it."""
    reasons: dict[str, str] = {}
    for row, reason in refused.items():
        reasons.setdefault(_router(row), reason)
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, other in reasons.items() if other == reason]
        print(f"{', '.join(names)} can't be counted: {reason}")


def _print_differences(found: Sequence[Difference]) -> None:
    """Print a line for each router and preset, with its largest change, and one for each difference."""
    summary, lines = [], []
    for router, group in itertools.groupby(found, lambda each: _router(each[0])):
        kinds, most, most_at = [], 0.0, ""
        for key, old, new in group:
            kind = "new" if old is None else "missing" if new is None else "changed"
            change = 0.0
            if old is not None and new is not None:
                change = new / old - 1 if old else math.inf
            if abs(change) > abs(most):
                most, most_at = change, key.partition("/")[2]
            kinds.append(kind)
            lines.append([kind, key, _shown(old), _shown(new), _percent(change)])
        numbers = [str(kinds.count(kind)) for kind in ("changed", "missing", "new")]
        summary.append([router, *numbers, _percent(most), most_at])
    _print_table(["router", "changed", "missing", "new", "at most", "at"], summary, "lrrrrl")
    print()
    _print_table(["", "router/shape/phase/convention", "old", "new", ""], lines, "llrrr")


def _shown(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _percent(change: float) -> str:
    return f"{100 * change:+.3g}%" if change else ""


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> None:
    sides = ["left" if side == "l" else "right" for side in align]
    print(tabulate(rows, heads, "plain", disable_numparse=True, colalign=sides))


def _write(golden: Path, table: Table) -> None:
    """Write a line for each router, shape and phase."""
    rows: dict[str, dict[str, int]] = {}
    for key, count in sorted(table.items()):
        row, _, convention = key.rpartition("/")
        rows.setdefault(row, {})[convention] = count
    lines = [f" {json.dumps(_HEAD)}: {json.dumps(ALL_CONVENTIONS)}"]
    lines += [f" {json.dumps(row)}: {[rows[row][name] for name in ALL_CONVENTIONS]}" for row in rows]
    try:
        golden.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    except OSError as error:
        raise UserError(f"FLOP table {golden} can't be written ({error.strerror})") from error


def _read(golden: Path) -> Table:
    try:
        rows = json.loads(golden.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"FLOP table {golden} can't be read ({error}); make it with --accept") from error
    try:
        conventions = rows.pop(_HEAD)
        table = {
            f"{row}/{convention}": count
            for row, counts in rows.items()
            for convention, count in zip(conventions, counts, strict=True)
        }
        if not all(type(count) is int for count in table.values()):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"FLOP table {golden} must hold the names of conventions under '{_HEAD}' and as many whole "
            "numbers in each other row; make it with --accept"
        ) from error
    return table
