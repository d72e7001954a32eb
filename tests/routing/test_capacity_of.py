"""Capacities per layer: what `DepthRouter.capacity_of` returns is what a layer selects, states and
costs.

B sequences, T tokens.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbench import DepthRouter
from modbench.audit import findings
from modbench.cli.main import main
from modbench.counting.counter import FlopCounter
from modbench.errors import UserError
from modbench.ledger import PHASES, Workload
from modbench.measure.routing import _nominal_capacities
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.routers.mod import MixtureOfDepths
from modbench.routers.mode_staged import StagedMoDE
from modbench.routers.threshold_skip import ThresholdSkip
from modbench.routing.build import RoutedDecoder, build_model, outline
from modbench.routing.depth_router import DepthScheme
from modbench.routing.registry import load_plugin
from modbench.routing.tokens import Tokens
from tests.inline import own_routers

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, kv_heads=2)
HEAD = """from dataclasses import dataclass
from modbench import DepthRouter, ExpertRouter, register_router
from modbench.routers.expert_threshold import ExpertThreshold
from modbench.routers.mixture_of_recursions import MixtureOfRecursions
from modbench.routers.relu_routing import ReluRouting
"""
DECORATED = '@register_router("{0}")\n@dataclass(frozen=True, kw_only=True)\nclass {0}({1}):\n'
PYRAMID = DECORATED.format("pyramid", "DepthRouter") + (
    "    def capacity_of(self, model, layer):\n"
    "        return 1 - (1 - self.capacity) * layer / model.layers\n"
)


class PerLayer(DepthScheme):
    """From 0.7 at layer 0 down to 0.1 at layer 3."""

    name = "per_layer"

    def capacity_of(self, model: ModelConfig, layer: int) -> float:
        return [0.7, 0.55, 0.3, 0.1][layer]


@dataclass(frozen=True, kw_only=True)
class Plain(PerLayer, DepthRouter):
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class OfMoD(PerLayer, MixtureOfDepths):
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class OfStaged(PerLayer, StagedMoDE):
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class OfThresholdSkip(PerLayer, ThresholdSkip):
    pass


@dataclass(frozen=True, kw_only=True)
class Ignores(DepthRouter):
    """Selects half of the tokens in each layer, the last one included."""

    name = "ignores"

    def capacity_of(self, model: ModelConfig, layer: int) -> float:
        return 0.5 if layer < 2 else 0.25

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return tokens.positions % 2 == 0


@dataclass(frozen=True, kw_only=True)
class Halves(PerLayer, DepthRouter):
    """Selects by top-k of each layer's capacity, and half of that in the last one."""

    def capacity_of(self, model: ModelConfig, layer: int) -> float:
        return 1 - layer / 8

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        if tokens.causal:
            return scores_BT > 0
        selected_BT = super().selected(scores_BT, tokens)
        return selected_BT & (tokens.positions % 2 == 0) if tokens.layer == 3 else selected_BT


@dataclass(frozen=True, kw_only=True)
class Thresholds(PerLayer, DepthRouter):
    """A threshold that rises while more than the layer's capacity is selected."""

    every: int = 1

    def scorer(self, model: ModelConfig) -> nn.Module:
        scorer = nn.Sequential(nn.Linear(model.width, 1), nn.Flatten(-2))
        scorer.register_buffer("threshold", torch.zeros(()))
        return scorer

    def selected(self, scores_BT: Tensor, tokens: Tokens) -> Tensor:
        return scores_BT > tokens.state["threshold"]

    def update(self, scorer: Any, scores_N: Tensor, selected_N: Tensor, tokens: Tokens) -> None:
        scorer.threshold += 0.1 * (selected_N.float().mean() - self.capacity)


SCHEMES = {
    "predictor": Plain(),
    "aux_bce": Plain(causal="aux_bce"),
    "ema_threshold": Plain(causal="ema_threshold"),
    "every second": Plain(every=2),
    "stride": OfMoD(scores="stride"),
    "gaussian": OfMoD(scores="gaussian"),
    "hash": OfMoD(scores="hash"),
    "staged": OfStaged(),
    "thresholds": Thresholds(),
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    before = torch.are_deterministic_algorithms_enabled()
    with own_routers():
        yield tmp_path / "plugin.py"
    torch.use_deterministic_algorithms(before)


def _expected(model: RoutedDecoder, tokens: int) -> dict[int, int]:
    router: Any = model.router
    routed = [layer for layer in range(4) if router.routes(layer, 4)]
    shares = {layer: Fraction(str(router.capacity_of(SHAPE, layer))) for layer in routed}
    return {layer: math.ceil(share * tokens) for layer, share in shares.items()}


@pytest.mark.parametrize("tokens", [250, 1001])
@pytest.mark.parametrize("case", SCHEMES)
def test_ledger_equals_the_counter_at_each_layers_own_capacity(case: str, tokens: int) -> None:
    model = outline(SHAPE, SCHEMES[case])
    expected = {(layer, "depth"): (n,) for layer, n in _expected(model, tokens).items()}
    stated = model.expected_counts(Workload.uniform(1, tokens))
    assert {key: n for key, n in stated.items() if key[1] == "depth"} == expected
    ids_BT = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    for phase in PHASES[:2]:
        context = Context()
        with FlopCounter() as counter:
            loss = model.train(phase == "train").loss(ids_BT, ids_BT, context)
            if phase == "train":
                (loss + context.trace.auxiliary_loss()).backward()
        assert model.ledger(Workload.uniform(1, tokens, phase)).total() == counter.total_model
    with FlopCounter() as counter, torch.no_grad():
        model.eval()(ids_BT, Context(selection="causal", cache=Cache(1), logits="last"))
    assert model.ledger(Workload.uniform(1, tokens, "prefill")).total() == counter.total_model


@pytest.mark.parametrize("case", [case for case in SCHEMES if case != "thresholds"])
def test_each_layer_selects_its_own_share(case: str) -> None:
    model = build_model(SHAPE, SCHEMES[case]).train()
    for forced in (False, True):
        context = Context(forced_balance=forced)
        model(torch.randint(97, (2, 33)), context)
        for layer, number in _expected(model, 33).items():
            assert context.trace.tensors[layer, "selected"].sum(1).tolist() == [number, number]


def test_hooks_of_a_layer_see_its_capacity() -> None:
    model = build_model(SHAPE, Thresholds()).train()
    for _ in range(200):
        context = Context()
        model(torch.randint(97, (4, 64)), context)
    for layer, capacity in enumerate([0.7, 0.55, 0.3, 0.1]):
        realised = context.trace.tensors[layer, "selected"].float().mean().item()
        assert realised == pytest.approx(capacity, abs=0.1)


def test_the_nominal_share_of_reports_is_the_mean_of_the_layers() -> None:
    model = build_model(SHAPE, Plain()).eval()
    context = Context(selection="causal")
    model(torch.zeros(1, 100, dtype=torch.long), context)
    share = _nominal_capacities(model, context.trace, 100)["nominal_capacity"]
    assert share == pytest.approx((0.7 + 0.55 + 0.3 + 0.1) / 4)


def test_options_are_those_of_the_router_whatever_its_layers_have() -> None:
    plain = MixtureOfDepths()
    assert all(
        part.options is plain for part in outline(SHAPE, plain).layers if hasattr(part, "options")
    )
    model = outline(SHAPE, OfMoD())
    assert [part.options.capacity for part in model.layers] == [0.7, 0.55, 0.3, 0.1]
    assert model.router.options() == {**plain.options(), "every": 1}


@pytest.mark.parametrize("value", [0, -0.5, 1.01, math.nan, math.inf, "half", None, True])
def test_a_capacity_that_is_none_names_router_and_layer(value: object) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Invalid(DepthRouter):
        name = "invalid"

        def capacity_of(self, model: ModelConfig, layer: int) -> Any:
            return value if layer == 3 else 0.5

    sentence = f"^router 'invalid': capacity_of layer 3 is {value!r}; it should"
    with pytest.raises(UserError, match=sentence):
        outline(SHAPE, Invalid())


def test_whole_numbers_and_those_of_numpy_are_capacities() -> None:
    np = pytest.importorskip("numpy")

    @dataclass(frozen=True, kw_only=True)
    class Mixed(DepthRouter):
        name = "mixed"
        every: int = 1

        def capacity_of(self, model: ModelConfig, layer: int) -> Any:
            return 1 if layer < 2 else np.float64(0.07)

    counts = outline(SHAPE, Mixed()).nominal_counts(Workload.uniform(1, 100))
    assert [counts[layer, "depth"] for layer in range(4)] == [(100,), (100,), (7,), (7,)]


@pytest.mark.parametrize(
    ("base", "remedy"),
    [
        ("ExpertRouter", "ExpertRouter never calls"),
        ("ExpertThreshold", "set the option 'capacity'"),
        ("ReluRouting", "set the option 'active_experts'"),
        ("MixtureOfRecursions", "set the option 'recursions'"),
    ],
)
def test_schemes_without_a_capacity_per_layer_refuse_the_hook(
    base: str, remedy: str, plugin: Path
) -> None:
    hook = "    def capacity_of(self, *_): return 1\n"
    plugin.write_text(HEAD + DECORATED.format("mine", base) + hook)
    with pytest.raises(UserError, match=f"defines capacity_of .*{remedy}"):
        load_plugin(plugin)


def test_a_scheme_whose_capacity_is_no_option_refuses_the_hook() -> None:
    with pytest.raises(UserError, match="router 'per_layer': capacity_of has no effect without an opt"):
        outline(SHAPE, OfThresholdSkip())


def test_check_flops_and_plan_follow(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin.write_text(HEAD + PYRAMID)
    assert main(["check", str(plugin)]) == 0
    assert "audit at 4 layers" in capsys.readouterr().out
    shape = ["--plugin", str(plugin), "--router", "pyramid", "--format", "json"]
    assert main(["flops", *shape, "--sequence", "250", "--phase", "train", "--profile"]) == 0
    (stated,) = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert stated["counters"]["modbench"]["flops"] == stated["flops"]
    assert main(["plan", *shape, "--budget", "1e15"]) == 0
    (planned,) = json.loads(capsys.readouterr().out.splitlines()[-1])["schemes"]
    assert 0.99e15 < planned["flops"] <= 1e15


@pytest.mark.parametrize(("case", "nominal"), [(Ignores, "0.25"), (Halves, "0.625")])
def test_probe_4_finds_a_layer_that_selects_another_number(
    case: type[DepthRouter], nominal: str
) -> None:
    (finding,) = findings(build_model(SHAPE, case()), only={4})
    assert finding.verdict == "failed"
    assert finding.figure.startswith("layer 3 selects ")
    assert f"nominal is {nominal}" in finding.figure


@pytest.mark.parametrize("case", ["predictor", "aux_bce", "ema_threshold", "stride", "staged"])
def test_probe_4_passes_layers_of_different_capacities(case: str) -> None:
    (finding,) = findings(build_model(SHAPE, SCHEMES[case]), only={4})
    assert finding.verdict == "passed"
