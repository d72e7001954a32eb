"""Bugs that show under autocast only, in another process, at another time, or in a gradient; and audits
with too little memory."""

import re
from dataclasses import replace
from pathlib import Path

import planted
import pytest
from inline import own_routers
from mutants import SHAPE, probed

from modbench.audit import warmed
from modbench.audit.warmed import BYTES, fitting
from modbench.routing.build import outline
from modbench.routing.registry import build_router, load_plugin
from modbench.routing.router import Router


def named(value: object) -> str:
    return type(value).__name__ if isinstance(value, Router) else str(value)


@pytest.mark.parametrize(
    ("router", "probe"),
    [
        (planted.TopUnderAutocast(), 1),
        (planted.MeanUnderAutocast(), 1),
        (planted.MeanUnderAutocast(), 2),
        (planted.MeanInBfloat16(), 1),
        (planted.MeanInBfloat16(), 2),
    ],
    ids=named,
)
def test_a_leak_under_autocast_alone_is_found(router: Router, probe: int) -> None:
    finding = probed(router, probe)
    assert finding.failed, finding.figure
    assert "under autocast to bfloat16" in finding.figure


@pytest.mark.processes
@pytest.mark.parametrize(
    ("router", "words"),
    [
        (planted.MutableDefault(), ""),
        (planted.GlobalCounter(), ""),
        (planted.HashOfAString(), "in another process"),
        (planted.GlobalCache(), "in another process"),
        (planted.ClosureCache(), "a text of the same shape first"),
        (planted.ByTheHour(), "in another process"),
        (planted.ByTheMinute(), "in another process"),
        (planted.ByTheWeekday(), "in another process"),
        (planted.ByTenMinutes(), "in another process"),
        (planted.ByTheMorning(), "in another process"),
        (planted.ByTheSystemClock(), "in another process"),
        (planted.FirstTrainingText(), "after a training step of the saved model"),
        (planted.ByTheDate(), "in another process"),
        (planted.ByTheWrittenHour(), "in another process"),
    ],
    ids=named,
)
def test_what_a_process_or_a_moment_decides_is_found(router: Router, words: str) -> None:
    finding = probed(router, 10)
    assert finding.failed, finding.figure
    assert words in finding.figure


@pytest.mark.parametrize("router", [planted.ClosureCache(), planted.ClosureCache(capacity=0.5)])
def test_scores_of_the_first_text_of_a_shape_are_no_ranked_scores(router: Router) -> None:
    finding = probed(router, 1)
    assert finding.failed
    assert finding.ranks


@pytest.mark.parametrize(
    ("router", "places"),
    [
        (planted.GradientDoubled(), "gate"),
        (planted.GradientRolled(), "gate"),
        (planted.GradientOfAScalar(), "gate"),
        (planted.FeedForwardCut(), "weights"),
        (planted.FirstGateDetached(), "gate"),
        (planted.StraightThrough(), "selected tokens"),
    ],
    ids=named,
)
def test_a_gradient_that_is_no_derivative_is_asked_about(router: Router, places: str) -> None:
    finding = probed(router, 12)
    assert finding.verdict == "unchecked", finding.figure
    assert re.search(rf"by up to \d.*: .*{places}.*is it meant\?", finding.figure)


@pytest.mark.parametrize(
    ("router", "verdict"),
    [
        (build_router("mod"), "passed"),
        (build_router("token_choice"), "passed"),
        (build_router("mode_staged", {"every": 1}), "passed"),
        (planted.ScoresInFloat32(), "not asked"),
        (planted.ScoresInBfloat16(), "not asked"),
    ],
    ids=named,
)
def test_a_gradient_that_is_the_derivative_passes(router: Router, verdict: str) -> None:
    finding = probed(router, 12)
    assert finding.verdict == verdict, finding.figure


@pytest.mark.parametrize(
    "router", [planted.CentredScores(), planted.ConvolvedScores(), planted.TwoBefore()]
)
def test_a_scorer_that_mixes_positions_is_named(router: Router) -> None:
    probes = (1, 2, 3) if isinstance(router, planted.CentredScores) else (3,)
    for probe in probes:
        finding = probed(router, probe)
        assert finding.failed
        scorer = r"\((Centred|Convolved|LooksTwoBack)\)"
        named = rf"layers\.1\.router {scorer} mixes positions.*What a scorer may see"
        assert re.search(named, finding.figure)


def test_a_scorer_without_parameters_is_a_scorer() -> None:
    finding = probed(planted.ScoresWithoutParameters(), 8)
    assert (finding.verdict, finding.figure) == ("not asked", "the scorer (Norm) has no parameters")


@pytest.mark.parametrize(("name", "kinds"), [("vanilla", 1), ("mod", 2)])
def test_an_audit_that_does_not_fit_has_fewer_layers_of_each_kind(
    name: str, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, config = build_router(name), replace(SHAPE, layers=8)
    whole = BYTES * outline(config, router).parameter_count("total")
    monkeypatch.setattr(warmed, "free_bytes", lambda _: whole)
    assert fitting(config, router) == (config, "")
    monkeypatch.setattr(warmed, "free_bytes", lambda _: whole // 2)
    smaller, note = fitting(config, router)
    assert 1 <= smaller.layers < 8
    assert replace(smaller, layers=8) == config
    assert len({type(layer) for layer in outline(smaller, router).layers}) == kinds
    assert f"{smaller.layers} of 8 layers" in note
    monkeypatch.setattr(warmed, "free_bytes", lambda _: 1)  # too little for any: the smallest is tried
    smallest, note = fitting(config, router)
    assert smallest.layers == kinds
    assert f"{kinds} of 8 layers" in note


@pytest.mark.processes
def test_a_router_that_builds_on_another_plugin_is_loaded_in_the_other_process(tmp_path: Path) -> None:
    head = "from dataclasses import dataclass\nfrom modbench import DepthRouter, register_router\n"
    head += "from modbench.routing.registry import router_class\n"
    files = []
    for name, base in (("under", "DepthRouter"), ("over", 'router_class("planted_under")')):
        file = tmp_path / f"{name}.py"
        lines = f'@register_router("planted_{name}")\n@dataclass(frozen=True, kw_only=True)\n'
        file.write_text(f"{head}{lines}class {name.title()}({base}):\n    pass\n")
        files.append(file)
    with own_routers():  # their names are gone after this test
        for file in files:
            load_plugin(file)
        finding = probed(build_router("planted_over"), 10)
    assert finding.verdict == "passed", finding.figure
