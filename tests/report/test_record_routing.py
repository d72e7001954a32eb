"""The routing section of a record: its validation."""

from dataclasses import replace

import pytest

from modbench.errors import UserError
from modbench.report.record import read_record
from modbench.report.routing import check_routing


def _set(value, path, new):
    *way, last = path
    for step in way:
        value = value[step]
    value[last] = new


def test_routing_survives_its_records_line(fakes):
    record = fakes.make_record(routing=fakes.make_routing(experts=(0,)))
    assert read_record(record.line()).routing == record.routing


def test_a_record_of_routing_that_contradicts_itself_is_refused(fakes):
    broken = fakes.make_routing()
    broken["edges"] = [0, 10, 5]
    with pytest.raises(UserError, match=r"routing\.edges must rise from 0"):
        replace(fakes.make_record(), routing=broken)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("windows",), "10", "routing.windows is '10'; input should be a valid integer"),
        (("texts",), ["a", "b", "c", 1], r"routing.texts\[3\] is 1"),
        (("topk",), None, "routing.topk is None"),
        (("topk", "entred"), [], "routing.topk.entred is not a known field"),
        (("topk", "depth", 0, "routed"), [1], r"topk.depth\[0\].routed has 1 entries"),
        (("topk", "depth", 1, "gates"), {"first": 0}, r"topk.depth\[1\].gates.exponent is missing"),
        (("topk", "experts", 0, "load"), [-1], r"topk.experts\[0\].load\[0\] is -1"),
        (("edges",), [0, 10, 5], "routing.edges must rise from 0"),
        (("topk", "experts", 0, "load"), [], r"topk.experts\[0\].load is \[\]"),
    ],
)
def test_a_wrong_field_of_routing_is_named(fakes, path, value, sentence):
    routing = fakes.make_routing(experts=(0, 1))
    for rule in ("causal", "topk"):
        routing[rule]["experts"][1] |= {"taken": [30, 50], "by_taken": [20, 60, 20], "by_no_op": [100]}
    check_routing(routing)
    _set(routing, path, value)
    with pytest.raises(UserError, match=sentence):
        check_routing(routing)
