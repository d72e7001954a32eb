import hashlib
import json
import math
import re

import pytest
from made_up_records import replace
from test_audit_record import make_audit
from test_run_key import make_run
from timings_made_up import make_case, timed

from modbench.errors import UserError
from modbench.records.record import canonical_json, key_of, read_record
from modbench.records.run import Run, Timed
from modbench.train.schedule import Schedule


def run_of(fakes, **fields):
    return fakes.make_record(**fields).record


def measured(fakes, **fields):
    """The measurement of a held-out loss."""
    return fakes.make_record(**fields).measurements[0]


def of_kind(fakes, kind):
    routing, layers = fakes.make_routing(), [{"layer": 1, "added": 0.5, "gate_scale": 0.25}]
    result = fakes.make_record("mod", routing=routing, layers=layers, audit_key="0" * 16)
    return {
        "run": result.record,
        "heldout": result.measurements[0],
        "downstream": result.measurements[1],
        "suite": fakes.suite_record([result]),
        "audit": make_audit(),
        "timing": timed("mod", make_case()),
    }[kind]


@pytest.mark.parametrize("kind", ["run", "heldout", "downstream", "suite", "audit", "timing"])
def test_a_record_of_each_kind_survives_its_own_line(fakes, kind):
    record = of_kind(fakes, kind)
    assert read_record(record.line()) == record
    assert json.loads(record.line())["kind"] == record.kind


def test_numbers_survive_a_line_to_the_bit(fakes):
    result = fakes.make_record(loss=0.1 + 0.2, metrics={"leak": 5e-324, "parameters": 2**70 + 1})
    run, measurement = (read_record(r.line()) for r in (result.record, result.measurements[0]))
    assert run.metrics["parameters"] == 2**70 + 1
    metrics = measurement.result.metrics
    assert (metrics["heldout_loss"], metrics["leak"]) == (0.1 + 0.2, 5e-324)


@pytest.mark.parametrize("status", ["failed", "oom", "diverged"])
def test_what_failed_survives_with_its_error(fakes, status):
    record = run_of(fakes, status=status)
    again = read_record(record.line())
    assert again == record
    assert (again.status, again.ends) == (status, [])
    lost = replace(measured(fakes), status=status, error="no weights", result={})
    assert read_record(lost.line()) == lost


def test_a_run_and_what_is_timed_survive_their_json():
    run = make_run(schedule=Schedule(kind="wsd", budgets=(300,)))
    assert Run.of(run.as_json()) == run
    assert Run.of(json.loads(json.dumps(run.as_json()))).key == run.key
    for timed_of in (run.timed, run.timed.machine):
        assert Timed.of(json.loads(json.dumps(timed_of.as_json()))) == timed_of


@pytest.mark.parametrize("part", ["model", "data", "train", "schedule", "router"])
def test_a_field_of_a_run_that_is_unknown_is_refused(fakes, part):
    value = run_of(fakes).run
    value = value | {part: value[part] | {"witdh": 3}}
    with pytest.raises(UserError, match="witdh"):
        replace(run_of(fakes), run=value, key=key_of(value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_place(fakes, value):
    with pytest.raises(UserError, match="finite numbers only"):
        fakes.make_record(metrics={"leak": value})
    line = fakes.altered(measured(fakes), lambda of: of["result"]["metrics"].update(leak=value))
    with pytest.raises(UserError, match=r"^result\.metrics\.leak is .*finite"):
        read_record(line)


END = {"budget": 10**12, "steps": 1, "tokens": 1, "flops": 1, "flops_nominal": 1}
FINDING = {"probe": 1, "name": "a", "verdict": "pased", "figure": "0", "ranks": True}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"key": "0" * 16}, "key is '0000000000000000' but its run's key is"),
        ({"metrics": {"parametrs": 1}}, "metrics.parametrs is not a known field"),
        ({"metrics": {"parameters": 54.0}}, "metrics.parameters is 54.0; .*valid integer"),
        ({"data": {"sha256": "ab", "train_tokens": 1}}, "data.heldout_tokens is missing"),
        ({"ends": [END]}, r"ends\[0\].audit is missing"),
        ({"ends": [END | {"audit": [FINDING]}]}, r"ends\[0\].audit\[0\].verdict is 'pased'; .*'passed'"),
        ({"ends": []}, "status is ok but ends lack the budget of the schedule"),
        ({"status": "fine"}, "status is 'fine'; input should be 'ok'"),
        ({"error": "boom"}, "an ok run has none"),
        ({"status": "failed", "error": " "}, "status is failed and error is empty"),
        ({"finished": "2026-01-01T00:10:00"}, "must be a UTC time"),
    ],
)
def test_a_wrong_field_of_a_run_is_named(fakes, change, sentence):
    with pytest.raises(UserError, match=sentence):
        replace(run_of(fakes), **change)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("run", "router", "plugin_sha256"), 3, r"run\.router\.plugin_sha256 is 3"),
        (("key",), "0" * 16, "key is '0{16}' but its measurement's key is"),
        (("measurement", "run"), "mod", r"measurement\.run is 'mod'; it must be 16 hexadecimal digits"),
        (("result", "metrics", "heldout_los"), 1.0, "metrics.heldout_los is not a known field"),
        (("result", "layers"), [{"gate_scale": 1.0}], r"result\.layers\[0\]\.layer is missing"),
        (("result", "downstream"), {"a": {}}, r"result\.downstream\.a\.\w+ is missing"),
        (("error",), "boom", "an ok run has none"),
        (("suite", "name"), "Fake", "suite.name is 'Fake'; it must"),
        (("suite", "rows"), [{"label": "mod", "runs": []}], r"suite\.rows\[0\]\.timed is missing"),
    ],
)
def test_a_wrong_field_of_a_line_is_named(fakes, path, value, sentence):
    kind = {"run": "run", "suite": "suite"}.get(path[0], "heldout")

    def change(line):
        of = line
        for step in path[:-1]:
            of = of[step]
        of[path[-1]] = value

    with pytest.raises(UserError, match=sentence):
        read_record(fakes.altered(of_kind(fakes, kind), change))


SIGNS = ["=1+1", "<b>bold</b>", "a|b", "", "x" * 70]


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("where", ["label", "name"])
def test_a_label_that_is_a_formula_or_html_is_refused(fakes, sign, where):
    kind, path = (
        ("suite", r"suite\.rows\[0\]\.label") if where == "label" else ("run", r"run\.router\.name")
    )

    def change(line):
        of = line["suite"]["rows"][0] if where == "label" else line["run"]["router"]
        of[where] = sign

    with pytest.raises(UserError, match=rf"{path} is '.*; it must be 1 to 60 letters"):
        read_record(fakes.altered(of_kind(fakes, kind), change))


def test_the_digest_is_the_hash_of_the_line_without_it(fakes):
    record = run_of(fakes)
    value = json.loads(record.line())
    assert (value["kind"], value["schema"], value["digest"]) == ("run", 4, record.digest)
    assert fakes.altered(record, lambda value: None) == record.line()


@pytest.mark.parametrize("change", [lambda r: r, lambda r: r.pop("digest")], ids=["wrong", "none"])
def test_an_edited_value_is_refused(fakes, change):
    value = json.loads(measured(fakes).line())
    change(value)
    value["result"]["metrics"]["heldout_loss"] = 1.0
    with pytest.raises(UserError, match="its digest is of another line"):
        read_record(canonical_json(value))


@pytest.mark.parametrize("innermost", ["", r'"\u0007"'], ids=["empty", "escaped"])
@pytest.mark.parametrize("depth", [40, 900, 100_000])
def test_deep_nesting_is_refused_in_a_sentence(fakes, depth, innermost):
    line, nested = measured(fakes).line(), "[" * depth + innermost + "]" * depth
    line = line.replace('"heldout_loss":5.0', f'"heldout_loss":{nested}')
    line = re.sub('"digest":"[0-9a-f]+"', '"digest":""', line)
    digest = hashlib.sha256(line.encode()).hexdigest()
    with pytest.raises(UserError, match=r"metrics\.heldout_loss is |not JSON|nested too deeply"):
        read_record(line.replace('"digest":""', f'"digest":"{digest}"'))
