"""The routing section of a record: its validation, and sums over seeds."""

from dataclasses import replace

import pytest

from modbench.errors import UserError
from modbench.report.record import read_record
from modbench.report.routing import busiest_first, check_routing, pooled


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
    broken["causal"]["entered"] = [1, 2, 3]
    with pytest.raises(UserError, match=r"routing\.causal\.entered adds up to 6 of 100 tokens"):
        replace(fakes.make_record(), routing=broken)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("windows",), "10", "routing.windows is '10'; input should be a valid integer"),
        (("texts",), ["a", "b", "c", 1], r"routing.texts\[3\] is 1"),
        (("seen",), [1, 2, 3], "routing.seen has 3 entries; it must have 4"),
        (("topk",), None, "routing.topk is None"),
        (("topk", "entred"), [], "routing.topk.entred is not a known field"),
        (("topk", "depth", 0, "routed"), [1], r"topk.depth\[0\].routed has 1 entries; it must have 2"),
        (("topk", "depth", 1, "gates"), {"first": 0}, r"topk.depth\[1\].gates.exponent is missing"),
        (("topk", "experts", 0, "load"), [-1], r"topk.experts\[0\].load\[0\] is -1"),
        (("topk", "routed"), [1], "routing.topk.routed has 1 entries; it must have 4"),
        (("edges",), [0, 10, 5], "routing.edges must rise from 0"),
        (("topk", "experts", 1, "taken"), [9], r"experts\[1\].taken has 1 entries; it must have 2"),
        (("topk", "experts", 1, "by_no_op"), [9], r"experts\[1\].by_no_op adds up to 9 of 100"),
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


def test_several_seeds_are_added_up(fakes):
    one, other = fakes.make_routing(), fakes.make_routing(routed=(10, 0, 16, 0))
    found = pooled([one, other], "causal")
    assert (found["windows"], found["sequence"], found["edges"]) == (20, 10, [0, 5, 10])
    assert [layer["routed"] for layer in found["depth"]] == [[8, 12]] * 2
    assert found["entered"] == [160, 40, 0]
    assert found["tokens"] == [(" the", 100, 100), ("\n", 40, 6), ("|", 32, 16), ("", 8, 4)]


def test_experts_are_ordered_before_seeds_are_added_up(fakes):
    one = fakes.make_routing((), (0,), load=(10, 40, 30, 20))
    other = fakes.make_routing((), (0,), load=(50, 25, 15, 10))
    assert busiest_first([one, other], "causal") == {0: ([90, 55, 35, 20], [])}
    assert busiest_first([one, other], "causal", no_ops=2) == {0: ([90, 35], [45, 30])}
