"""Single probes: correct routers that resemble a bug pass, and variants of bugs fail.

B sequences, T tokens, D model width; R sequences with selected tokens, K the most of one sequence.
"""

import re
from dataclasses import dataclass

import mutants
import pytest
import torch
from mutants import Depth, Right
from torch import Tensor

from modbench.audit import findings
from modbench.audit.finding import NO_BLOCK
from modbench.ledger import Counts, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.routers.expert_choice import ExpertChoice
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouted
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


@pytest.fixture
def depth(monkeypatch: pytest.MonkeyPatch):
    """The model whose second layer is of the class given."""

    def model(layer: type[Right]) -> Decoder:
        monkeypatch.setitem(mutants.MUTANTS, "case", layer)
        return build_model(SHAPE, Depth(bug="case"), seed=4)

    return model


def failures(model: Decoder, *probes: int) -> dict[int, str]:
    """Figures of the failed ones of ``probes``, by number; of all if none is given."""
    only = probes or range(1, 12)
    return {f.probe: f.figure for f in findings(model, only=only) if f.failed}


@pytest.mark.parametrize("gate", ["linear", "sigmoid", "scaled_sigmoid"])
def test_a_residual_of_the_whole_block_passes_where_it_is_declared(gate: str) -> None:
    router = build_router("mod", {"residual": "full", "gate": gate})
    assert failures(build_model(SHAPE, router, seed=4), 5, 6, 7, 8) == {}


def test_a_residual_of_the_whole_block_is_a_double_residual_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(SHAPE, build_router("mod", {"residual": "full"}), seed=4)
    monkeypatch.setattr(DepthRouted, "adds_residual", False)
    assert set(failures(model, 5, 6, 7, 8)) == {6}
    monkeypatch.setattr(DepthRouted, "adds_residual", True)
    assert set(failures(build_model(SHAPE, build_router("mod"), seed=4), 5, 6, 7, 8)) == {6}


def test_a_gate_that_keeps_the_gradient_from_the_router_is_named(depth) -> None:
    class Detached(Right):
        def gate(self, scores_RK: Tensor) -> Tensor:
            return super().gate(scores_RK).detach()

    failed = failures(depth(Detached))
    assert set(failed) == {8, 9}  # its ledger counts a gradient that does not exist
    assert failed[8] == "cross-entropy does not reach layers.1.router"


def test_a_predictor_that_nothing_teaches_is_named(depth) -> None:
    class Untaught(Right):
        def errors(self, hints_BT: Tensor, targets_BT: Tensor) -> Tensor:
            return super().errors(hints_BT.detach(), targets_BT)

    failed = failures(depth(Untaught), 8, 9)
    assert set(failed) == {8, 9}
    assert failed[8] == "no loss reaches layers.1.predictor"


def test_a_loss_that_is_drawn_at_random_is_no_loss_of_one_sequence(depth) -> None:
    class Drawn(Right):
        def errors(self, hints_BT: Tensor, targets_BT: Tensor) -> Tensor:
            kept_BT = torch.rand(hints_BT.shape, device=hints_BT.device) < 0.5
            return super().errors(hints_BT, targets_BT) * kept_BT

    assert failures(depth(Drawn), 8, 9, 10) == {}


def test_a_selection_by_lot_is_no_teacher_of_one_sequence() -> None:
    options = {"scores": "gaussian", "capacity": 0.4}
    assert failures(build_model(SHAPE, build_router("mode_staged", options), seed=4), 8) == {}


def test_an_option_of_the_same_name_that_means_something_else_is_left_alone() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other(Depth):
        capacity: float = 3.0

        def build_layer(self, model: ModelConfig, layer: int):
            if self.capacity < 2:
                raise ValueError("capacity is experts per token here")
            return Depth(gate=self.gate).build_layer(model, layer)

    assert failures(build_model(SHAPE, Other(), seed=4), 6, 8) == {}


@pytest.mark.parametrize("where", ["list", "buffer", "tensor"])
def test_state_that_hides_is_found(where: str, depth) -> None:
    class Hiding(Right):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            self.list, self.tensor = [{"steps": 0}], torch.zeros(1)
            self.register_buffer("buffer", torch.zeros(1), persistent=False)

        def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
            if self.training and where == "list":
                self.list[0]["steps"] += 1
            elif self.training:
                getattr(self, where).add_(1)
            return super().highest(scores_BT, context)

    figure = f"training changes layers.1.{where}, which is not in state_dict"
    assert failures(depth(Hiding), 10) == {10: figure}


def test_what_is_made_on_first_use_is_no_state(depth) -> None:
    class Caching(Right):
        made: dict | None = None

        def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
            if self.made is None:
                self.made = {"table": torch.arange(9)}
            return super().highest(scores_BT, context)

    assert failures(depth(Caching), 1, 10) == {}


def test_an_unsaved_constant_drawn_from_the_seed_fails(depth) -> None:
    class Unsaved(Right):
        def initialise(self, seed: int) -> None:
            super().initialise(seed)
            self.factor = 1 + seed / 7

        def gate(self, scores_RK: Tensor) -> Tensor:
            if self.options.gate == "scaled_sigmoid":
                return super().gate(scores_RK)
            return super().gate(scores_RK) * self.factor

    assert "logits of the loaded model (topk) differ by" in failures(depth(Unsaved), 10)[10]


def test_a_nominal_count_missing_in_the_trace_fails(depth) -> None:
    class Silent(Right):
        def nominal_counts(self, workload: Workload) -> Counts:
            return {(1, "entered"): (1,)}

    figure = failures(depth(Silent), 4)[4]
    assert figure.startswith("layer 1 declares entered 1, and the trace has no such count; one")


def test_an_expert_that_takes_one_too_few_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ExpertChoice.taken

    def nominal_counts(self: RoutedExperts, workload: Workload) -> Counts:
        each = sum(right(self.options, n) for n in workload.lengths)
        return {(self.layer, "load"): (each,) * self.options.experts}

    monkeypatch.setattr(RoutedExperts, "nominal_counts", nominal_counts)
    monkeypatch.setattr(ExpertChoice, "taken", lambda self, n: max(1, right(self, n) - 1))
    model = build_model(SHAPE, build_router("expert_choice"))
    assert "layer 0 declares load" in failures(model, 4)[4]


def test_an_mlp_that_runs_for_all_saves_nothing(depth) -> None:
    """Half of the saving is real: attention runs for the selected alone."""

    class HalfMasked(Right):
        def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
            delta_RKD = super().delta(inner, scores_RK)
            rest_1TD = torch.zeros(1, 3 * delta_RKD.shape[1], delta_RKD.shape[2]).to(delta_RKD)
            return delta_RKD + 0 * self.block.feed_forward(rest_1TD, Context()).sum()

    failed = failures(depth(HalfMasked), 9, 11)
    assert set(failed) == {9, 11}
    assert "layer 1 spends 1." in failed[11]


class InAList(Right):
    """Its block stands in a list."""

    def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
        super().__init__(options, model, layer)
        self.blocks = torch.nn.ModuleList([self._modules.pop("block")])

    def __getattr__(self, name: str):
        return super().__getattr__("blocks")[0] if name == "block" else super().__getattr__(name)


def test_a_block_in_a_list_is_found(depth) -> None:
    found = findings(depth(InAList), only={5, 6, 7, 8, 11})
    assert {finding.verdict for finding in found} == {"passed"}

    class Doubled(mutants.DoubleResidual, InAList):
        pass

    assert set(failures(depth(Doubled), 5, 6, 7, 11)) == {6}


def test_a_router_without_a_block_of_ours_is_unchecked_where_tokens_skip(depth) -> None:
    class Several(InAList):
        def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
            super().__init__(options, model, layer)
            self.blocks.append(Block(model, layer))
            self.blocks[1].requires_grad_(False)

    for finding in findings(depth(Several), only={6, 7, 11}):
        figure = f"tokens skip layer 1, {NO_BLOCK}"
        assert (finding.verdict, finding.figure) == ("unchecked", figure)


class Unshown(Right):
    """Does not show which tokens are selected."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        out_BTD = super().forward(x_BTD, context)
        context.trace.tensors.pop((self.layer, "selected"), None)
        return out_BTD


def test_skipping_is_found_where_it_is_not_shown(depth) -> None:
    class Masked(mutants.MaskedButComputed, Unshown):
        pass

    found = {finding.probe: finding for finding in findings(depth(Unshown))}
    assert found[5].verdict == "not asked"
    assert found[5].figure == "a layer leaves some tokens unchanged and does not show selected"
    # With capacity 1 no token is left unchanged, so the selection cannot be inferred.
    assert {probe for probe, finding in found.items() if finding.verdict == "not asked"} == {5, 6}
    assert [finding for finding in found.values() if finding.failed] == []
    assert "layer 1 spends 3." in failures(depth(Masked), 11)[11]


def test_a_router_parameter_of_another_name_is_asked_for_a_gradient(depth) -> None:
    class Renamed(Right):
        def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
            super().__init__(options, model, layer)
            self.chooser = self._parameters.pop("router")

        def initialise(self, seed: int) -> None:
            for parameter in (self.chooser, self.predictor):
                torch.nn.init.normal_(parameter)

        def __getattr__(self, name: str):
            return super().__getattr__("chooser" if name == "router" else name)

    class Lost(Renamed):
        def gate(self, scores_RK: Tensor) -> Tensor:
            return super().gate(scores_RK.detach())

    (finding,) = findings(depth(Renamed), only={8})
    assert finding.verdict == "unchecked"
    assert "cross-entropy reaches 1 of the 2 parameters of the scheme's own classes" in finding.figure
    assert failures(depth(Lost), 8) == {8: "no loss reaches layers.1.chooser"}


def test_a_layer_that_selects_no_token_has_no_router_gradient(depth) -> None:
    """Top-k selects at least one token; the ledger of a threshold must handle none."""

    class Threshold(Right):
        def highest(self, scores_BT: Tensor, context: Context) -> Tensor:
            return scores_BT >= 0.2

        def nominal_counts(self, workload: Workload) -> Counts:
            return {}

    assert "in a training step of one token" in failures(depth(Threshold), 9)[9]


def test_experts_that_start_alike_are_named(depth) -> None:
    class Alike(Right):
        """A second block that is drawn from the same stream as the first."""

        def __init__(self, options: Depth, model: ModelConfig, layer: int) -> None:
            super().__init__(options, model, layer)
            self.second = Block(model, layer)

        def delta(self, inner: GatheredTokens, scores_RK: Tensor) -> Tensor:
            return super().delta(inner, scores_RK) + 0 * self.second.delta(inner.x_RKD, inner.context)

    assert "start with the same weights" in failures(depth(Alike), 8)[8]


def test_a_router_that_exits_fails_its_probe_only(depth) -> None:
    class Exits(Right):
        def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
            raise SystemExit(0)

    figure, *others = (finding.figure for finding in findings(depth(Exits), only={1, 2, 8}))
    assert len(others) == 2
    said = r"raised SystemExit: 0 \(.*test_audit_probes.py, line \d+\) \(at 3 x 63 tokens\)"
    assert re.fullmatch(said, figure)


def test_random_scoring_is_reported_as_unequal_passes(depth) -> None:
    class Drawn(Right):
        def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
            return hints_BT + torch.randn_like(hints_BT) >= 0.3

    assert failures(depth(Drawn), 1)[1].startswith("two equal passes differ by ")
