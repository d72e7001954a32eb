"""Sections of a record, which are checked where it is read: downstream tasks and routing."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from modbench.errors import UserError
from modbench.records.line import (
    COUNT,
    COUNTS,
    POSITIVE,
    REAL,
    at_least,
    check,
    closed,
    list_of,
    matching,
    optional,
)

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
    depth=list_of[closed(layer=int, routed=COUNTS, gates=optional[_WEIGHTS])],
    experts=list_of[closed(layer=int, load=Annotated[COUNTS, Field(min_length=1)])],
)
#: One character per token: 1 if it is selected.
_MASK: Any = matching(re.compile("[01]+"), "a string of 0 and 1")
_LAYER: Any = Annotated[int, Field(ge=0, le=9999)]
_PASSAGE = closed(
    texts=Annotated[list[str], Field(min_length=1)],  #: text of each token; empty: end of text
    causal=list_of[
        closed(layer=_LAYER, selected=_MASK, gates=optional[list_of[REAL]])  #: gate of each token
    ],
    topk=list_of[closed(layer=_LAYER, selected=_MASK)],
    #: first choice of each token under the causal rule; -1: no-op experts only
    experts=list_of[closed(layer=_LAYER, first=list_of[Annotated[int, Field(ge=-1, le=10**6)]])],
)
#: What a routed layer does to the held-out tokens that it selects under the causal rule.
ROUTED_LAYER = closed(
    layer=_LAYER,
    added=optional[REAL],  #: mean norm of its update over that of the residual stream; 0 without tokens
    gate_scale=optional[REAL],  #: mean magnitude of the gate
)
_ROUTING = TypeAdapter(
    closed(
        windows=POSITIVE,  #: windows of held-out text, each read without context
        sequence=POSITIVE,  #: tokens of each
        edges=COUNTS,  #: edges of the position bins, in tokens
        passage=optional[_PASSAGE],  #: routing of the first tokens of the first window
        causal=_RULE,
        topk=_RULE,
    )
)


def check_routing(value: Any) -> None:
    """Validate the routing of a record; ``{}`` is that of a model that routes nothing. Raises UserError:
    a field is missing or of another type, or the position bins contradict each other."""
    if value == {}:
        return
    check("routing", value, _ROUTING)
    edges = value["edges"]
    if len(edges) < 2 or edges != sorted({0, *edges, value["sequence"]}):
        raise UserError("routing.edges must rise from 0 to the number of tokens of a window")
    for rule in RULES:
        for index, layer in enumerate(value[rule]["depth"]):
            where = f"routing.{rule}.depth[{index}]"
            if len(layer["routed"]) != len(edges) - 1:
                raise UserError(f"{where}.routed has {len(layer['routed'])} entries; not one per bin")
            _check_weights(f"{where}.gates", layer.get("gates"))
    if "passage" in value:
        _check_passage(value["passage"])


def _check_weights(where: str, weights: dict[str, Any] | None) -> None:
    if weights is None:
        return
    every, selected = weights["all"], weights["selected"]
    if len(every) != len(selected) or any(a < b for a, b in zip(every, selected, strict=True)):
        raise UserError(f"{where}.selected must have one count per bin, none above that of all")
    if not any(every):
        raise UserError(f"{where}.all counts no token; leave the histogram out")


def _check_passage(passage: dict[str, Any]) -> None:
    """Check that each list is of the passage's tokens, and that both rules have the same layers."""
    tokens = len(passage["texts"])
    for part in (*RULES, "experts"):
        for index, layer in enumerate(passage[part]):
            for name in sorted(layer.keys() - {"layer"}):
                if len(layer[name]) != tokens:
                    where = f"routing.passage.{part}[{index}].{name}"
                    raise UserError(f"{where} has {len(layer[name])} entries; not one per token")
    causal, topk = ([layer["layer"] for layer in passage[rule]] for rule in RULES)
    if causal != topk or causal != sorted({*causal}):
        raise UserError("routing.passage must list the same layers for both rules, in order")


#: Names of tasks and metrics; no match is a spreadsheet formula or HTML.
TASK_NAME = re.compile(r"\w[\w .,:;+%=()@*/|-]{0,199}")
_NAME: Any = matching(
    TASK_NAME, "1 to 200 letters, digits, spaces and . , : ; + % = ( ) @ * / | - _, no sign in front"
)
_NUMBER: Any = REAL | None
_NUMBERS: Any = list_of[_NUMBER]

#: A metric of the trained model. A number that is not known, or is NaN or infinite, is null.
_METRIC: Any = closed(
    value=_NUMBER,
    stderr=_NUMBER,  #: over items
    chance=_NUMBER,
    untrained=_NUMBER,  #: value of the same model before training
    checkpoints=optional[_NUMBERS],  #: values at the last checkpoints before the end
    higher_is_better=bool | None,
)
#: Mean over items with its standard error.
_MEAN = closed(value=_NUMBER, stderr=_NUMBER, untrained=_NUMBER, checkpoints=optional[_NUMBERS])
#: Largest difference of a log-probability between batch sizes, and items whose answer differs.
_SHIFT = closed(nats=_NUMBER, flipped=COUNT, items=COUNT, batches=COUNTS)
#: Scores of single items, in the order of the documents.
_ITEMS = closed(correct=_NUMBERS, bits_per_byte=_NUMBERS, margin=_NUMBERS)
_TASK: Any = closed(
    part_of=_NAME,  #: the name in the suite that it was evaluated for
    metrics=dict[_NAME, _METRIC],
    items=COUNT,
    few_shot=COUNT,
    version=str,
    rule=Literal["causal"],
    answer_bits_per_byte=_MEAN | None,  #: of the right answer
    answer_margin=_MEAN | None,  #: of the right answer over the best wrong one, nats
    truncated=COUNT,  #: requests whose context did not fit the model's length
    tokens=COUNT,  #: evaluated tokens
    seconds_per_token=REAL,
    nominal_flops_per_token=_NUMBER,
    realised_flops_per_token=_NUMBER,
    share_routed=_NUMBER,
    batch_shift=optional[_SHIFT],  #: on the first items; of a group's tasks together
    sha256=str | None,  #: of the items' documents; null for a group
    by_item=optional[_ITEMS | None],  #: null for a group
    missing=optional[list_of[_NAME]],  #: tasks of a group that were left out
)
#: Settings of a measurement: those of a task (`modbench.measure.config.MeasureConfig.task`), or others.
_OF_TASK = {
    **dict.fromkeys(("data", "include"), optional[str]),
    **dict.fromkeys(("limit", "fewshot", "checkpoints"), optional[COUNT]),
}
SETTINGS: Any = at_least(task=optional[str], **_OF_TASK)
TASKS: Any = list_of[at_least(task=str, **_OF_TASK)]
DOWNSTREAM: Any = dict[_NAME, _TASK]
