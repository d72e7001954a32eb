import hashlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from modbench.errors import UserError
from modbench.records.record import canonical_json, cell_key, read_record


def test_a_record_survives_its_own_line_to_the_bit(fakes):
    record = fakes.make_record(loss=0.1 + 0.2, metrics={"leak": 5e-324, "train_flops": 2**70 + 1})
    again = read_record(record.line())
    assert again == record
    assert again.metrics["heldout_loss"] == 0.1 + 0.2
    assert again.metrics["train_flops"] == 2**70 + 1


def test_canonical_json_ignores_order_and_kind_of_sequence():
    assert canonical_json({"b": (1, 2), "a": "é"}) == canonical_json({"a": "é", "b": [1, 2]})
    assert canonical_json({"b": 1, "a": None}) == '{"a":null,"b":1}'


def test_a_seed_or_an_option_changes_the_key(fakes):
    keys = {
        fakes.make_record(**change).key for change in ({}, {"seed": 1}, {"options": {"capacity": 0.5}})
    }
    assert len(keys) == 3
    assert all(len(key) == 16 for key in keys)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_place(fakes, value):
    with pytest.raises(UserError, match=r"metrics\.heldout_loss is .*finite"):
        fakes.make_record(loss=value)
    with pytest.raises(UserError, match=r"finite numbers only"):
        canonical_json({"a": [1.0, value]})


@pytest.mark.parametrize("value", [{"a": {1, 2}}, "\ud800", {"a": b"x"}])
def test_values_other_than_json_are_refused(value):
    with pytest.raises(UserError, match="plain JSON"):
        canonical_json(value)


def test_a_record_holds_a_copy(fakes):
    options = {"capacity": 0.125}
    record = fakes.make_record(options=options)
    options["capacity"] = 1.0
    assert record.key == cell_key(record.cell)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"key": "0" * 16}, "key is '0000000000000000' but its cell's key is"),
        ({"metrics": {"heldout_los": 1.0}}, "metrics.heldout_los is not a known field"),
        ({"metrics": {"heldout_loss": "low"}}, "metrics.heldout_loss is 'low'"),
        ({"metrics": {"heldout_loss": True}}, "metrics.heldout_loss is True"),
        ({"metrics": {"train_steps": 54.0}}, "metrics.train_steps is 54.0; .*valid integer"),
        ({"metrics": {"forward_seconds": 0.1}}, "metrics.forward_seconds is 0.1; .*valid dictionary"),
        (
            {"metrics": {"forward_seconds": {"median": 1, "iqr": 0, "n": 3}}},
            "metrics.forward_seconds.stable is missing",
        ),
        ({"status": "fine"}, "status is 'fine'; input should be 'ok'"),
        ({"error": "boom"}, "an ok run has none"),
        ({"status": "failed", "error": " "}, "status is failed and error is empty"),
        ({"suite": {"name": "x"}}, "suite.version is missing"),
        (
            {"code": {"version": "1", "commit": None, "dirty": None, "host": "h"}},
            "code.host is not a known field",
        ),
        ({"environment": {"gpu": None, "threads": 2, "torch": "2"}}, "environment.cpu is missing"),
        ({"curve": [{"step": 1}]}, r"curve\[0\].flops is missing"),
        (
            {"audit": [{"probe": 1, "name": "a", "verdict": "pased", "figure": "0", "ranks": True}]},
            r"audit\[0\].verdict is 'pased'; input should be 'passed'",
        ),
        ({"suite": {"name": "Fake", "version": 1, "rank_by": "leak"}}, "suite.name is 'Fake'; it must"),
        ({"metrics": {"train_steps": 10**31}}, "metrics.train_steps is 10+; input should be less"),
        ({"seconds": {"train": -1.0}}, "seconds.train is -1.0"),
        ({"seconds": {"Train it": 1.0}}, "seconds.Train it.*lower-case letters"),
        ({"finished": "yesterday"}, "finished is 'yesterday'; it must be a UTC time"),
        ({"finished": "2026-01-01T00:10:00"}, "must be a UTC time"),
    ],
)
def test_a_wrong_field_is_named(fakes, change, sentence):
    with pytest.raises(UserError, match=sentence):
        replace(fakes.make_record(), **change)


@pytest.mark.parametrize(
    "sign", ["=1+1", "+1", "-1", "@sum", "<b>bold</b>", "a|b", "a\nb", "", "x" * 70]
)
@pytest.mark.parametrize("where", ["label", "name"])
def test_a_label_that_is_a_formula_or_html_is_refused(fakes, sign, where):
    with pytest.raises(UserError, match=rf"cell\.router\.{where} is '.*; it must be 1 to 60 letters"):
        fakes.make_record(**{"router": "mod", "label" if where == "label" else "router": sign or " "})


def test_a_row_of_a_suite_of_several_shapes_has_two_labels(fakes):
    assert fakes.make_record("mod, every second/124M", router="mod").key
    with pytest.raises(UserError, match="label"):
        fakes.make_record("mod/124M/1", router="mod")


def test_a_timed_metric_says_how_many_threads_it_had_and_if_the_machine_was_loaded(fakes):
    timed = {"median": 0.1, "iqr": 0.01, "n": 12, "stable": True, "loaded": True, "threads": 2}
    record = fakes.make_record(metrics={"forward_seconds": timed}, seconds={"train": 41.5})
    assert read_record(record.line()) == record
    assert record.metrics["forward_seconds"] == timed
    for wrong in ({"loaded": 1}, {"threads": 0}, {"load": 2}):
        with pytest.raises(UserError, match=r"metrics\.forward_seconds"):
            fakes.make_record(metrics={"forward_seconds": timed | wrong})


def test_the_digest_is_the_hash_of_the_line_without_it(fakes):
    record = fakes.make_record()
    value = json.loads(record.line())
    assert (value["kind"], value["schema"], value["digest"]) == ("cell", 3, record.digest)
    assert fakes.altered(record, lambda value: None) == record.line()


@pytest.mark.parametrize("change", [lambda r: r, lambda r: r.pop("digest")], ids=["wrong", "none"])
def test_an_edited_value_is_refused(fakes, change):
    value = json.loads(fakes.make_record().line())
    change(value)
    value["metrics"]["heldout_loss"] = 1.0
    with pytest.raises(UserError, match="its digest is of another line"):
        read_record(canonical_json(value))


@pytest.mark.parametrize("depth", [40, 900, 100_000])
def test_deep_nesting_is_refused_in_a_sentence(fakes, depth):
    line, nested = fakes.make_record().line(), "[" * depth + "]" * depth
    line = line.replace('"heldout_loss":5.0', f'"heldout_loss":{nested}')
    line = re.sub('"digest":"[0-9a-f]+"', '"digest":""', line)
    digest = hashlib.sha256(line.encode()).hexdigest()
    with pytest.raises(UserError, match=r"metrics\.heldout_loss is |not JSON"):
        read_record(line.replace('"digest":""', f'"digest":"{digest}"'))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["routing"]["causal"].update(experts=[3]),
        lambda r: r.update(metrics=[3]),
        lambda r: r.update(kind=["cell"]),
        lambda r: r.update(started=3),
        lambda r: r["cell"].update(train=[3]),
        lambda r: r["cell"]["measure"].update(heldout_tokens="all"),
        lambda r: r.update(cell=3, key=cell_key({})),
    ],
)
def test_a_field_of_another_type_is_refused_in_a_sentence(fakes, change):
    line = fakes.altered(fakes.make_record(routing=fakes.make_routing()), change)
    with pytest.raises(UserError) as raised:
        read_record(line)
    assert len(str(raised.value)) < 300


def test_records_and_store_load_nothing_heavy():
    heavy = ["torch", "pandas", "numpy", "seaborn", "matplotlib", "scipy", "rich"]
    code = (
        "import sys, modbench.records.record, modbench.records.store, modbench.report.page; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
