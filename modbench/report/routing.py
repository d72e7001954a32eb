"""The routing section of a record: its validation.

Counts are of held-out tokens under each selection rule; `modbench.measure.histograms` takes them. A
histogram of router scores or gates has bins of width 2^``exponent``; the first starts at ``first``
widths. Counts that no figure reads are optional. Loads no torch.
"""

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
    depth=list_of[closed(layer=int, routed=COUNTS, gates=optional[_WEIGHTS])],
    entered=optional[COUNTS],  #: tokens selected by none of these layers, by one, by two, ...
    routed=optional[COUNTS],  #: per id, how often a layer selected it
    experts=list_of[
        closed(
            layer=int,
            load=Annotated[COUNTS, Field(min_length=1)],
            scores=optional[_WEIGHTS],
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
        ids=optional[COUNTS],  #: the most frequent token ids; empty without depth-routed layers
        texts=optional[list[str]],  #: text of each id; empty: end of text
        seen=optional[COUNTS],  #: occurrences of each id
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
            if len(layer["routed"]) != len(edges) - 1:
                where = f"routing.{rule}.depth[{index}].routed"
                raise UserError(f"{where} has {len(layer['routed'])} entries; not one per bin")
