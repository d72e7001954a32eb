"""The routing section of a record: its validation, and sums over seeds.

Counts are of held-out tokens under each selection rule; `modbench.measure.histograms` takes them. A
histogram of router scores or gates has bins of width 2^``exponent``; the first starts at ``first``
widths. Loads no torch.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from modbench.errors import UserError
from modbench.report.line import COUNTS, POSITIVE, check, closed, list_of, optional

RULES = ("causal", "topk")

_WEIGHTS = (
    closed(
        exponent=Annotated[int, Field(ge=-1000, le=1000)],
        first=Annotated[int, Field(ge=-(2**63), lt=2**63)],
        all=COUNTS,
        selected=COUNTS,
    )
    | None
)
_RULE = closed(
    #: depth-routed layers: selected tokens by position bin, histogram of gates
    depth=list_of[closed(layer=int, routed=COUNTS, gates=_WEIGHTS)],
    entered=COUNTS,  #: tokens selected by none of these layers, by one, by two, ...
    routed=COUNTS,  #: per id, how often a layer selected it
    experts=list_of[
        closed(
            layer=int,
            load=COUNTS,
            scores=_WEIGHTS,
            taken=optional[COUNTS],  #: expert choice: tokens with any expert, by position bin
            by_taken=optional[COUNTS],  #: expert choice: tokens with no expert, one, two, ...
            by_no_op=optional[COUNTS],  #: tokens with no choice of a no-op expert, one, two, ...
        )
    ],
)
_ROUTING = TypeAdapter(
    closed(
        windows=POSITIVE,  #: windows of held-out text, each read without context
        sequence=POSITIVE,  #: tokens of each
        edges=COUNTS,  #: edges of the position bins, in tokens
        ids=COUNTS,  #: the most frequent token ids; empty without depth-routed layers
        texts=list[str],  #: text of each id; empty: end of text
        seen=COUNTS,  #: occurrences of each id
        causal=_RULE,
        topk=_RULE,
    )
)


def check_routing(value: Any) -> None:
    """Validate the routing of a record; ``{}`` is that of a model that routes nothing.

    Raises:
        UserError: a field is missing or of another type, or counts contradict each other.
    """
    if value == {}:
        return
    check("routing", value, _ROUTING)
    edges, ids, tokens = value["edges"], len(value["ids"]), value["windows"] * value["sequence"]
    if len(edges) < 2 or edges != sorted({0, *edges, value["sequence"]}):
        raise UserError("routing.edges must rise from 0 to the number of tokens of a window")
    _check_counts("routing", value, texts=ids, seen=ids)
    for name in RULES:
        where, rule = f"routing.{name}", value[name]
        _check_counts(where, rule, tokens, routed=ids, entered=len(rule["depth"]) + 1)
        for index, layer in enumerate(rule["depth"]):
            _check_counts(f"{where}.depth[{index}]", layer, routed=len(edges) - 1)
        for index, layer in enumerate(rule["experts"]):
            _check_counts(f"{where}.experts[{index}]", layer, tokens, taken=len(edges) - 1)


def _check_counts(where: str, value: dict[str, Any], tokens: int = 0, **lengths: int) -> None:
    """Check the lengths of lists in ``value``, and that counts of all tokens add up to ``tokens``."""
    for name, length in lengths.items():
        if name in value and len(value[name]) != length:
            raise UserError(f"{where}.{name} has {len(value[name])} entries; it must have {length}")
    for name in ("entered", "by_taken", "by_no_op"):
        if name in value and sum(value[name]) != tokens:
            raise UserError(f"{where}.{name} adds up to {sum(value[name])} of {tokens} tokens")


def layout(routing: dict[str, Any]) -> Any:
    """Layout of a routing: counts of two routings are added only if it is equal."""
    layers = [
        (rule, layer["layer"], len(layer.get("load", ())))
        for rule in RULES
        for layer in (*routing[rule]["depth"], *routing[rule]["experts"])
    ]
    return routing["edges"], routing["ids"], layers


def by_layer(
    routings: Sequence[dict[str, Any]], rule: str, part: str
) -> dict[int, list[dict[str, Any]]]:
    """The entries of ``depth`` or ``experts`` of all seeds, by layer."""
    found: dict[int, list[dict[str, Any]]] = {}
    for routing in routings:
        for layer in routing[rule][part]:
            found.setdefault(layer["layer"], []).append(layer)
    return dict(sorted(found.items()))


def pooled(routings: Sequence[dict[str, Any]], rule: str) -> dict[str, Any]:
    """Sum the routing of several seeds of one cell under ``rule``.

    Returns ``windows``, ``sequence``, ``edges`` as in a record, ``depth`` and ``entered`` with counts
    added, and ``tokens``: (text, seen, routed) of each id, most frequent first. Experts are left out,
    since their numbers mean something else in each seed; so are histograms, since scores differ in
    scale."""
    first = routings[0]
    depth = []
    for number, layers in by_layer(routings, rule, "depth").items():
        routed = _sums(layer["routed"] for layer in layers)
        depth.append({"layer": number, "routed": routed})
    seen = _sums(routing["seen"] for routing in routings)
    routed = _sums(routing[rule]["routed"] for routing in routings)
    # The ids are those of the held-out text, and the same in all seeds.
    order = sorted(range(len(seen)), key=lambda index: (-seen[index], first["ids"][index]))
    return {
        "windows": sum(routing["windows"] for routing in routings),
        "sequence": first["sequence"],
        "edges": first["edges"],
        "depth": depth,
        "entered": _sums(routing[rule]["entered"] for routing in routings),
        "tokens": [(first["texts"][index], seen[index], routed[index]) for index in order],
    }


def busiest_first(
    routings: Sequence[dict[str, Any]], rule: str, no_ops: int = 0
) -> dict[int, tuple[list[int], list[int]]]:
    """Loads of each layer's experts, busiest first; the last ``no_ops`` experts of a layer are sorted
    separately. Seeds are added rank by rank, since expert numbers mean something else in each seed."""
    found = {}
    for number, layers in by_layer(routings, rule, "experts").items():
        real = len(layers[0]["load"]) - no_ops
        found[number] = (
            _sums(sorted(layer["load"][:real], reverse=True) for layer in layers),
            _sums(sorted(layer["load"][real:], reverse=True) for layer in layers),
        )
    return found


def _sums(lists: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*lists, strict=True)]
