"""Mixture-of-Depths against a plain loop, in every combination of its options; where it routes; what its
causal rules learn from; and what every scheme must show.

B sequences, T tokens, D width.
"""

import itertools

import layer_checks as checks
import pytest
import torch
from against_loop import equals_its_loop, model_of

from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouted
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
GATES = ("linear", "sigmoid", "scaled_sigmoid")
CAUSAL = ("predictor", "aux_bce", "ema_threshold")
CONTROLS = ("gaussian", "hash", "stride")

#: All that can be combined: a control has neither gate nor causal rule to choose.
COMBINED: dict[str, dict] = {
    f"{gate}-{residual}-{causal}": {"gate": gate, "residual": residual, "causal": causal}
    for gate, residual, causal in itertools.product(GATES, ("delta", "full"), CAUSAL)
} | {
    f"{scores}-{residual}": {"scores": scores, "residual": residual}
    for scores, residual in itertools.product(CONTROLS, ("delta", "full"))
}


def layer_of(options: dict, shape: ModelConfig = SHAPE) -> DepthRouted:
    """Training, and where there is a threshold, some pass."""
    layer = model_of("mod", options, shape).layers[1]
    assert isinstance(layer, DepthRouted)
    if layer.threshold is not None:
        layer.threshold.value.fill_(0.6)
    return layer


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("options", COMBINED.values(), ids=COMBINED)
def test_it_equals_its_plain_loop(options: dict, rule: str) -> None:
    equals_its_loop(layer_of({"capacity": 0.3, **options}), (17, 63, 1), rule)


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("capacity", [0.07, 1.0])
def test_it_equals_its_plain_loop_where_a_share_is_a_written_decimal(capacity: float, rule: str) -> None:
    """0.07 of 100 and 0.29 of 100 are no whole numbers in binary."""
    small = ModelConfig(vocabulary=97, layers=2, heads=1, width=8, mlp_width=8)
    for scores in ("learned", "stride"):
        equals_its_loop(layer_of({"scores": scores, "capacity": capacity}, small), (100, 200), rule)


def test_it_equals_its_plain_loop_in_an_awkward_shape() -> None:
    shape = ModelConfig(
        vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80
    )
    equals_its_loop(layer_of({"gate": "sigmoid"}, shape), (31, 9), "topk")


@pytest.mark.parametrize("scores", ["learned", "stride"])
@pytest.mark.parametrize("tokens", [1, 8, 100])
def test_exactly_k_of_each_sequence_enter(scores: str, tokens: int) -> None:
    layer = layer_of({"scores": scores, "capacity": 0.07})
    for lengths in ((tokens,) * 3, (tokens, 1, tokens // 2 + 1)):
        context = Context(lengths_B=checks.lengths_of(lengths), tokens_BT=torch.randint(97, (3, tokens)))
        layer(torch.randn(3, tokens, SHAPE.width, dtype=torch.float64), context)
        k = tuple(max(1, -(-7 * length // 100)) for length in lengths)
        selected_BT = context.trace.tensors[1, "selected"]
        assert selected_BT.sum(1).tolist() == list(k)
        assert context.trace.counts[1, "depth"] == k
        assert layer.nominal_counts(Workload(lengths=lengths)) == {(1, "depth"): k}
        for row, length in enumerate(lengths):
            assert not selected_BT[row, length:].any()


@pytest.mark.parametrize("scores", ["learned", "hash"])
def test_of_equal_scores_the_earlier_enter(scores: str) -> None:
    layer = layer_of({"scores": scores, "capacity": 0.3})
    context = Context(tokens_BT=torch.full((2, 10), 3))
    layer(torch.ones(2, 10, SHAPE.width, dtype=torch.float64), context)
    assert context.trace.tensors[1, "selected"].tolist() == [[True] * 3 + [False] * 7] * 2


@pytest.mark.parametrize(
    ("layers", "options", "routed"),
    [
        (6, {}, [1, 3, 5]),
        (7, {"every": 3, "offset": 0}, [0, 3, 6]),
        (5, {"every": 1, "first_dense": 1, "last_dense": 2}, [1, 2]),
        (8, {"offset": 0, "first_dense": 1, "last_dense": 1}, [2, 4, 6]),
    ],
    ids=str,
)
def test_where_blocks_are_routed(layers: int, options: dict, routed: list[int]) -> None:
    shape = ModelConfig(vocabulary=9, width=8, layers=layers, heads=1, mlp_width=8)
    model = build_model(shape, build_router("mod", options))
    assert [n for n, layer in enumerate(model.layers) if isinstance(layer, DepthRouted)] == routed
    context = Context()
    model(torch.zeros(1, 9, dtype=torch.long), context)
    assert sorted(n for n, what in context.trace.counts if what == "depth") == routed


def test_the_router_is_taught_by_aux_bce_alone() -> None:
    for causal, taught in (
        ("predictor", {"predictor.up", "predictor.down"}),
        ("aux_bce", {"router.weight"}),
    ):
        layer = layer_of({"causal": causal})
        x_BTD = torch.randn(2, 16, SHAPE.width, dtype=torch.float64)
        context = Context()
        layer(x_BTD, context)
        context.trace.losses[1, "causal_rule"].backward()
        assert {name for name, p in layer.named_parameters() if p.grad is not None} == taught
