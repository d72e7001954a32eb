"""Expert choice against a plain loop, its pools, its thresholds, and what every scheme must show.

B sequences, T tokens, D width, E experts.
"""

import layer_checks as checks
import naive
import pytest
import torch
from against_loop import equals_its_loop, model_of

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)

OPTIONS: dict[str, dict] = {
    "default": {},
    "one-of-three": {"experts": 3, "capacity": 1.0, "expert_width": 9},
    "batch": {"pool": "batch"},
    "everyone": {"experts": 2, "capacity": 2.0, "pool": "batch"},
    "half": {"capacity": 0.5, "expert_width": 5},
}


def part_of(options: dict, shape: ModelConfig = SHAPE) -> RoutedExperts:
    part = model_of("expert_choice", options, shape).layers[0].feed_forward
    assert isinstance(part, RoutedExperts)
    return part


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("lengths", [(17, 63, 1), (5, 5)], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_equals_its_plain_loop(options: dict, lengths: tuple[int, ...], rule: str) -> None:
    equals_its_loop(part_of(options), lengths, rule)


def test_it_equals_its_plain_loop_in_an_awkward_shape() -> None:
    shape = ModelConfig(
        vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80
    )
    equals_its_loop(part_of({"pool": "batch", "experts": 5}, shape), (31, 9), "topk")


@pytest.mark.parametrize(("capacity", "width"), [(0.7, 3840), (1.4, 1920), (2.8, 960), (0.3, 8960)])
def test_a_width_is_divided_by_the_capacity_as_a_decimal_number(capacity: float, width: int) -> None:
    """2688 / 0.7 is 3840; floating-point division differs."""
    shape = ModelConfig(vocabulary=97, width=8, layers=1, heads=1, mlp_width=2688)
    with torch.device("meta"):
        layer = build_router("expert_choice", {"capacity": capacity}).build_layer(shape, 0)
    assert layer.feed_forward.bank.width == width


def test_gates_are_the_scores_as_they_are() -> None:
    """A token that all experts take is weighted by a softmax, which sums to 1; one that a single expert
    takes by less than that."""
    part = part_of({"experts": 2, "capacity": 1.0})
    with torch.no_grad():
        part.bank.up.copy_(part.bank.up[:1].expand_as(part.bank.up))  # all experts alike
        part.bank.down.copy_(part.bank.down[:1].expand_as(part.bank.down))
    x_BTD = torch.randn(1, 40, SHAPE.width, dtype=torch.float64)
    out_TD = part(x_BTD, Context())[0]
    alike_TD = naive.mlp("swiglu", part.bank.up[0], part.bank.down[0], x_BTD[0])
    weight_T = (out_TD * alike_TD).sum(1) / alike_TD.square().sum(1)
    scores_TE = (x_BTD[0] @ part.router.weight.T).softmax(-1)
    taken_TE = torch.stack(
        [torch.isin(torch.arange(40), torch.tensor(naive.best(s, 20))) for s in scores_TE.T.tolist()], 1
    )
    torch.testing.assert_close(weight_T, (scores_TE * taken_TE).sum(1))


@pytest.mark.parametrize("pool", ["sequence", "batch"])
def test_each_expert_takes_its_share_rounded_up(pool: str) -> None:
    part = part_of({"pool": pool, "experts": 3, "capacity": 1.0, "expert_width": 8})
    x_BTD = torch.randn(2, 10, SHAPE.width, dtype=torch.float64)
    for lengths, sequence, batch in (((10, 10), 4 + 4, 7), ((10, 2), 4 + 1, 4)):
        context = Context(lengths_B=checks.lengths_of(lengths))
        part(x_BTD, context)
        taken = sequence if pool == "sequence" else batch
        assert context.trace.tensors[0, "load"].tolist() == [taken] * 3


def test_of_equal_scores_an_expert_takes_the_earlier() -> None:
    part = part_of({"experts": 2, "capacity": 1.0})
    torch.nn.init.zeros_(part.router.weight)
    out_TD = part(torch.randn(1, 9, SHAPE.width, dtype=torch.float64), Context())[0]
    assert out_TD.any(1).tolist() == [True] * 5 + [False] * 4


def test_other_sequences_change_training_with_a_batch_pool_and_no_prediction() -> None:
    x_BTD = torch.randn(3, 20, SHAPE.width, dtype=torch.float64)
    for pool, rule, alike in (
        ("batch", "topk", False),
        ("sequence", "topk", True),
        ("batch", "causal", True),
        ("sequence", "causal", True),
    ):
        part = part_of({"pool": pool})
        together, alone = part(x_BTD, Context(selection=rule)), part(x_BTD[:1], Context(selection=rule))
        assert torch.allclose(together[0], alone[0]) == alike, (pool, rule)


@pytest.mark.parametrize("pool", ["sequence", "batch"])
def test_thresholds_follow_the_lowest_score_taken(pool: str) -> None:
    part = part_of({"pool": pool, "threshold_decay": 0.75}).train()
    seen = []
    for _ in range(6):
        x_BTD = torch.randn(2, 16, SHAPE.width, dtype=torch.float64)
        scores_BTE = (x_BTD @ part.router.weight.T).softmax(-1)
        if pool == "batch":
            scores_BTE = scores_BTE.flatten(0, 1)[None]
        k = scores_BTE.shape[1] // 4
        seen.append(scores_BTE.topk(k, dim=1).values[:, -1].mean(0).detach())
        part(x_BTD, Context())
    average_E = torch.zeros(8, dtype=torch.float64)
    for n, lowest_E in enumerate(seen, start=1):
        average_E += max(1 / n, 0.25) * (lowest_E - average_E)
    torch.testing.assert_close(part.router.threshold.value, average_E, rtol=1e-5, atol=0)
    part.eval()(x_BTD, Context())
    part.train()(x_BTD, Context(selection="causal"))
    assert part.router.threshold.updates == 6


@pytest.fixture(params=checks.full_except(OPTIONS, "default"))
def scheme(request: pytest.FixtureRequest) -> checks.Scheme:
    shape = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48)
    return checks.Scheme("expert_choice", OPTIONS[request.param], shape)


class TestEveryScheme(checks.EveryScheme):
    """On each of the schemes above."""
