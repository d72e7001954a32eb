"""Every built-in router passes all twelve probes, with its defaults and with each preset; so does the
README's."""

import importlib
import pkgutil
from dataclasses import replace

import pytest
import torch

import modbench.routers
from modbench.audit import audit
from modbench.audit import findings as findings_of
from modbench.audit.finding import NO_SKIPPING
from modbench.audit.warmed import warmed
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import (
    build_router,
    preset_options,
    router_class,
    router_names,
)

for _module in pkgutil.iter_modules(modbench.routers.__path__):
    importlib.import_module(f"modbench.routers.{_module.name}")
PLAIN = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
#: Odd vocabulary, grouped heads, an untied head, a depth that 2 does not divide.
AWKWARD = ModelConfig(
    vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80, tied_head=False
)
NAMES = [
    name for name in router_names() if router_class(name).__module__.startswith("modbench.routers.")
]
PRESETS = [f"{name}:{preset}" for name in NAMES for preset in router_class(name).presets]
OTHERS = [name for name in NAMES if name not in ("vanilla", "mode_staged")]
#: Recursions need layers that they can share.
LAYERS = {"mixture_of_recursions": 4}


def shaped(shape: ModelConfig, name: str) -> ModelConfig:
    return replace(shape, layers=LAYERS.get(name, shape.layers))


@pytest.mark.parametrize(
    "name", [*NAMES, *(pytest.param(name, marks=pytest.mark.full) for name in PRESETS)]
)
def test_every_router_and_preset_passes(name: str) -> None:
    router, options = preset_options(name)
    model = warmed(shaped(PLAIN, router), router, options, 3, 32)
    findings = audit(model)
    assert [(finding.probe, finding.figure) for finding in findings if finding.failed] == []
    assert [finding.probe for finding in findings] == list(range(1, 13))


@pytest.mark.parametrize(
    "name", ["vanilla", "mode_staged", *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS)]
)
def test_an_awkward_shape_passes_and_nothing_is_left_changed(name: str) -> None:
    model = build_model(shaped(AWKWARD, name), build_router(name), seed=4).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    findings = audit(model, shapes=((3, 21),))
    assert [(finding.probe, finding.figure) for finding in findings if finding.failed] == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_model_and_seed_give_the_same_findings() -> None:
    model = build_model(PLAIN, build_router("mod"), seed=1)
    one, other = (list(findings_of(model, shapes=((2, 19),), only={1, 2, 4, 8})) for _ in range(2))
    assert one == other


def test_what_does_not_apply_is_not_asked() -> None:
    findings = audit(build_model(PLAIN, build_router("vanilla")))
    figures = {finding.probe: finding.figure for finding in findings}
    assert figures[4] == "no layer declares nominal counts"
    assert figures[5] == "no layer skips tokens"
    assert figures[6] == figures[7] == figures[11] == NO_SKIPPING
    assert figures[8] == "no router has a scorer, and no parameter has router in its name"
    spared = {finding.probe for finding in findings if finding.verdict == "not asked"}
    assert spared == {4, 5, 6, 7, 8, 11}
