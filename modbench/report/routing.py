"""What a record keeps of its routing, in whole numbers: the check of it, and several seeds' together.

Counts are of held-out tokens, under each selection rule; `modbench.measure.histograms` takes them. A
histogram of weights has bins of the width 2^``exponent``, the first from ``first`` widths on, so that
two of them can be added whatever their ranges. Standard library only, as `modbench.report.record`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from modbench.errors import UserError
from modbench.report.shape import check, is_of

RULES = ("causal", "topk")
#: Bins of a histogram of weights, at most.
WEIGHT_BINS = 40

_NONE = type(None)
_ROUTING = {
    "windows": int,  #: of held-out text, each read from an empty context
    "sequence": int,  #: tokens of each
    "edges": list,  #: of the bins of positions, in tokens
    "ids": list,  #: the token ids most often seen; none where no token skips a block
    "texts": list,  #: what each of them stands for; empty: end of text
    "seen": list,  #: how often
    **dict.fromkeys(RULES, dict),
}
_RULE = {
    "depth": list,  #: layers that a part of the tokens enters
    "entered": list,  #: how many tokens entered none of them, one, two, ...
    "routed": list,  #: how often each of the ids entered one
    "experts": list,  #: layers with experts
}
_DEPTH = {"layer": int, "routed": list, "gates": (dict, _NONE)}
_EXPERTS = {"layer": int, "load": list, "scores": (dict, _NONE)}
#: What a layer with experts has besides, if that means anything in its scheme and the record is not
#: from before it was taken.
_CHOICES = {
    "taken": list,  #: where experts choose: by bins of positions, the tokens that any expert took
    "by_taken": list,  #: and how many tokens no expert took, one, two, ...
    "by_no_op": list,  #: of how many tokens no choice fell on experts that do nothing, one, two, ...
}
_WEIGHTS = {"exponent": int, "first": int, "all": list, "selected": list}


def check_routing(value: Any) -> None:
    """Refuse what is no record's routing; ``{}`` is that of a model that routes nothing.

    Raises:
        UserError: a field is missing or of another type, or counts contradict each other.
    """
    if value == {}:
        return
    check("routing", value, _ROUTING)
    if min(value["windows"], value["sequence"]) < 1:
        raise UserError("routing has no tokens; windows and sequence must be 1 or more")
    edges = _counts("routing edges", value["edges"])
    if len(edges) < 2 or edges != sorted(set(edges)) or (edges[0], edges[-1]) != (0, value["sequence"]):
        raise UserError(f"routing edges are {edges}; they must rise from 0 to {value['sequence']}")
    ids = _counts("routing ids", value["ids"])
    if len(set(ids)) != len(ids):
        raise UserError("routing ids has an id twice")
    _counts("routing seen", value["seen"], len(ids))
    if len(value["texts"]) != len(ids) or not all(isinstance(text, str) for text in value["texts"]):
        raise UserError(f"routing texts must be {len(ids)} texts, one to each id")
    for rule in RULES:
        _check_rule(f"routing {rule}", value[rule], value)


def _check_rule(where: str, rule: Any, routing: dict[str, Any]) -> None:
    check(where, rule, _RULE)
    for index, layer in enumerate(rule["depth"]):
        place = f"{where} depth[{index}]"
        check(place, layer, _DEPTH)
        _counts(f"{place} routed", layer["routed"], len(routing["edges"]) - 1)
        _check_weights(f"{place} gates", layer["gates"])
    for index, layer in enumerate(rule["experts"]):
        place = f"{where} experts[{index}]"
        known = {name: kind for name, kind in _CHOICES.items() if name in layer}
        check(place, layer, _EXPERTS | known)
        _counts(f"{place} load", layer["load"])
        _check_weights(f"{place} scores", layer["scores"])
        _check_choices(place, layer, routing)
    tokens = routing["windows"] * routing["sequence"]
    entered = _counts(f"{where} entered", rule["entered"], len(rule["depth"]) + 1)
    if sum(entered) != tokens:
        raise UserError(f"{where} entered adds up to {sum(entered)} of {tokens} tokens")
    routed = _counts(f"{where} routed", rule["routed"], len(routing["ids"]))
    for name, count, seen in zip(routing["ids"], routed, routing["seen"], strict=True):
        if count > seen * len(rule["depth"]):
            raise UserError(
                f"{where} routed says that id {name}, seen {seen} times, entered "
                f"{len(rule['depth'])} layers {count} times"
            )


def _check_choices(where: str, layer: dict[str, Any], routing: dict[str, Any]) -> None:
    tokens = routing["windows"] * routing["sequence"]
    for name in ("by_taken", "by_no_op"):
        if name in layer and sum(_counts(f"{where} {name}", layer[name])) != tokens:
            raise UserError(f"{where} {name} adds up to {sum(layer[name])} of {tokens} tokens")
    if ("taken" in layer) != ("by_taken" in layer):
        raise UserError(f"{where} has one of taken and by_taken; it must have both or neither")
    if "taken" in layer:
        taken = sum(_counts(f"{where} taken", layer["taken"], len(routing["edges"]) - 1))
        if taken != sum(layer["by_taken"][1:]):
            raise UserError(
                f"{where} taken adds up to {taken} tokens and by_taken has {sum(layer['by_taken'][1:])}"
            )


def _check_weights(where: str, weights: Any) -> None:
    if weights is None:
        return
    check(where, weights, _WEIGHTS)
    everyone = _counts(f"{where} all", weights["all"])
    if not 1 <= len(everyone) <= WEIGHT_BINS:
        raise UserError(f"{where} all has {len(everyone)} bins; it must have 1 to {WEIGHT_BINS}")
    selected = _counts(f"{where} selected", weights["selected"], len(everyone))
    if any(part > whole for part, whole in zip(selected, everyone, strict=True)):
        raise UserError(f"{where} selected has more in a bin than all has")


def _counts(where: str, value: Any, length: int | None = None) -> list[int]:
    if not isinstance(value, list) or not all(is_of(count, int) and count >= 0 for count in value):
        raise UserError(f"{where} must be a list of whole numbers, 0 or more")
    if length is not None and len(value) != length:
        raise UserError(f"{where} has {len(value)} numbers; it must have {length}")
    return value


def pooled(routings: Sequence[dict[str, Any]], rule: str) -> dict[str, Any]:
    """What several seeds of one cell say together, under ``rule``: ``windows``, ``sequence``, ``edges``
    as in a record; ``depth`` with all counts added up, ``entered`` too; ``tokens``, (text, seen, routed)
    of each id, the most often seen first. Experts are left out: seeds number them anew."""
    first = routings[0]
    layers: dict[int, dict[str, Any]] = {}
    for routing in routings:
        for layer in routing[rule]["depth"]:
            known = layers.get(layer["layer"])
            layers[layer["layer"]] = layer if known is None else _added(known, layer)
    texts: dict[int, str] = {}
    seen: Counter[int] = Counter()
    routed: Counter[int] = Counter()
    for routing in routings:
        texts.update(zip(routing["ids"], routing["texts"], strict=True))
        seen.update(dict(zip(routing["ids"], routing["seen"], strict=True)))
        routed.update(dict(zip(routing["ids"], routing[rule]["routed"], strict=True)))
    return {
        "windows": sum(routing["windows"] for routing in routings),
        "sequence": first["sequence"],
        "edges": first["edges"],
        "depth": [layers[number] for number in sorted(layers)],
        "entered": _sums(routing[rule]["entered"] for routing in routings),
        "tokens": [
            (texts[name], seen[name], routed[name]) for name in sorted(seen, key=lambda n: (-seen[n], n))
        ],
    }


def busiest_first(
    routings: Sequence[dict[str, Any]], rule: str, no_ops: int = 0
) -> dict[int, tuple[list[int], list[int]]]:
    """Of each layer with experts their loads, the busiest first, and of the ``no_ops`` that come last
    in its list by themselves. Seeds are added up place by place: which expert is which is an accident
    of the seed."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for routing in routings:
        for layer in routing[rule]["experts"]:
            real = len(layer["load"]) - no_ops
            parts = [sorted(part, reverse=True) for part in (layer["load"][:real], layer["load"][real:])]
            if layer["layer"] in found:
                known = found[layer["layer"]]
                parts = [_sums(pair) for pair in zip(known, parts, strict=True)]
            found[layer["layer"]] = (parts[0], parts[1])
    return {number: found[number] for number in sorted(found)}


def taken_by_experts(routings: Sequence[dict[str, Any]], rule: str) -> list[dict[str, Any]]:
    """Of each layer whose experts choose, in order: ``layer``, ``taken`` and ``by_taken`` as in a
    record, seeds added up."""
    found: dict[int, dict[str, Any]] = {}
    for routing in routings:
        for layer in routing[rule]["experts"]:
            if "taken" not in layer:
                continue
            known = found.get(layer["layer"], {"taken": [], "by_taken": []})
            found[layer["layer"]] = {
                name: [sum(pair) for pair in zip_longest(known[name], layer[name], fillvalue=0)]
                for name in ("taken", "by_taken")
            }
    return [{"layer": number, **found[number]} for number in sorted(found)]


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    gates = [layer["gates"] for layer in (one, other) if layer["gates"] is not None]
    return {
        "layer": one["layer"],
        "routed": _sums([one["routed"], other["routed"]]),
        "gates": added_weights(gates) if gates else None,
    }


def added_weights(histograms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Histograms of weights as one: in bins as wide as the widest of any, wider still where more than
    `WEIGHT_BINS` would be needed."""
    exponent = max(weights["exponent"] for weights in histograms)
    while True:
        spans = [_span(weights, exponent) for weights in histograms]
        low, high = min(low for low, _ in spans), max(high for _, high in spans)
        if high - low < WEIGHT_BINS:
            break
        exponent += 1
    total: dict[str, Any] = {"exponent": exponent, "first": low}
    for name in ("all", "selected"):
        counts = [0] * (high - low + 1)
        for weights in histograms:
            for place, count in enumerate(weights[name], start=weights["first"]):
                counts[(place >> exponent - weights["exponent"]) - low] += count
        total[name] = counts
    return total


def _span(weights: dict[str, Any], exponent: int) -> tuple[int, int]:
    """The first and the last bin, in widths of 2^``exponent``."""
    shift = exponent - weights["exponent"]
    return weights["first"] >> shift, weights["first"] + len(weights["all"]) - 1 >> shift


def _sums(lists: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*lists, strict=True)]
