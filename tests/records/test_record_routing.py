"""The routing section of a record: its validation."""

import pytest

from modbench.errors import UserError
from modbench.records.line import as_json
from modbench.records.record import read_record


def _set(value, path, new):
    *way, last = path
    for step in way:
        value = value[step]
    value[last] = new


def routing_read(fakes, routing):
    """The routing as the line of its measurement holds it."""
    (measurement, *_) = fakes.make_record(routing=routing).measurements
    return as_json(read_record(measurement.line()).result.routing)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("windows",), "10", "routing.windows is '10'; input should be a valid integer"),
        (("topk", "depth", 0, "routed"), [1], r"topk.depth\[0\].routed has 1 entries"),
        (("topk", "depth", 1, "gates"), {"first": 0}, r"topk.depth\[1\].gates.exponent is missing"),
        (("topk", "experts", 0, "load"), [-1], r"topk.experts\[0\].load\[0\] is -1"),
        (("edges",), [0, 10, 5], "routing.edges must rise from 0"),
    ],
)
def test_a_wrong_field_of_routing_is_named(fakes, path, value, sentence):
    routing = fakes.make_routing(experts=(0, 1))
    _set(routing, path, value)
    with pytest.raises(UserError, match=sentence):
        routing_read(fakes, routing)


def _passage() -> dict:
    layer = {"layer": 1, "selected": "0100", "gates": [0.1, 0.9, -0.2, 0.0]}
    trained = [{"layer": 1, "selected": "0110"}]
    texts = ["The", " cat", "\n", ""]
    experts = [{"layer": 0, "first": [3, -1, 0, 3]}]
    return {"texts": texts, "causal": [layer], "topk": trained, "experts": experts}


def test_routing_its_passage_and_its_gates_survive_the_records_line(fakes):
    routing = fakes.make_routing(experts=(0,)) | {"passage": _passage()}
    assert routing_read(fakes, routing) == routing


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("texts",), ["a"], r"passage.causal\[0\].\w+ has 4 entries; not one per token"),
        (("causal", 0, "selected"), "01x0", "selected is '01x0'; it must be a string of 0 and 1"),
        (("causal", 0, "gates"), [0.5], r"causal\[0\].gates has 1 entries; not one per token"),
        (("causal", 0, "layer"), 10**9, r"causal\[0\].layer is 1000000000"),
        (("topk", 0, "layer"), 2, "must list the same layers for both rules, in order"),
    ],
)
def test_a_damaged_passage_is_refused_by_name(fakes, path, value, sentence):
    routing = fakes.make_routing() | {"passage": _passage()}
    _set(routing["passage"], path, value)
    with pytest.raises(UserError, match=sentence):
        routing_read(fakes, routing)


@pytest.mark.parametrize("selected", [[0, 2], [0, 51, 8]])
def test_histogram_with_more_selected_tokens_than_tokens_is_refused(fakes, selected):
    routing = fakes.make_routing()
    routing["topk"]["depth"][1]["gates"]["selected"] = selected
    with pytest.raises(UserError, match=r"topk.depth\[1\].gates.selected must have one count per bin"):
        routing_read(fakes, routing)
