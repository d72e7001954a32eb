"""Expert choice against a plain loop, its pools, its thresholds, and what every scheme must show.

B sequences, T tokens, D width, E experts.
"""

import copy

import layer_checks as checks
import naive
import pytest
import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import build_model
from modbench.model.registry import build_router
from modbench.routers.expert_choice import ExpertChoiceExperts

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)

OPTIONS: dict[str, dict] = {
    "default": {},
    "one-of-three": {"experts": 3, "capacity": 1.0, "expert_width": 9},
    "batch": {"pool": "batch"},
    "everyone": {"experts": 2, "capacity": 2.0, "pool": "batch"},
    "half": {"capacity": 0.5, "expert_width": 5},
}


def part_of(options: dict, shape: ModelConfig = SHAPE) -> ExpertChoiceExperts:
    model = build_model(shape, build_router("expert_choice", options), seed=5).double()
    part = model.layers[0].feed_forward
    assert isinstance(part, ExpertChoiceExperts)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return part.eval()


def pools(part: ExpertChoiceExperts, x_BTD: Tensor, lengths: tuple[int, ...], rule: str) -> list[Tensor]:
    """What each pool gets, sequence after sequence; each token is a pool of its own to a threshold."""
    rows = [x_BTD[row, :length] for row, length in enumerate(lengths)]
    if rule == "causal":
        return [naive.experts_above(part, x_TD) for x_TD in rows]
    if part.options.pool == "batch":
        return [naive.experts_choose(part, torch.cat(rows))]
    return [naive.experts_choose(part, x_TD) for x_TD in rows]


def equals_its_plain_loop(part: ExpertChoiceExperts, lengths: tuple[int, ...], rule: str) -> None:
    twin = copy.deepcopy(part)
    x_BTD = torch.randn(len(lengths), max(lengths), part.model.width, dtype=torch.float64)
    slow_BTD = x_BTD.clone().requires_grad_()
    x_BTD.requires_grad_()
    context = Context(selection=rule, lengths_B=checks.lengths_of(lengths))
    fast_BTD = part(x_BTD, context)
    fast_ND = torch.cat([fast_BTD[row, :length] for row, length in enumerate(lengths)])
    slow_ND = torch.cat(pools(twin, slow_BTD, lengths, rule))
    torch.testing.assert_close(fast_ND, slow_ND, rtol=1e-6, atol=1e-8)
    weight_ND = torch.randn_like(fast_ND)
    (fast_ND * weight_ND).sum().backward()
    (slow_ND * weight_ND).sum().backward()
    torch.testing.assert_close(x_BTD.grad, slow_BTD.grad, rtol=1e-6, atol=1e-8)
    for (key, ours), theirs in zip(part.named_parameters(), twin.parameters(), strict=True):
        assert theirs.grad.any(), key
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8, msg=key)


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("lengths", [(63,), (17, 63, 1), (5, 5)], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_equals_its_plain_loop(options: dict, lengths: tuple[int, ...], rule: str) -> None:
    equals_its_plain_loop(part_of(options), lengths, rule)


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("lengths", [(1000,), (411, 1000, 1000)], ids=str)
@pytest.mark.parametrize("pool", ["sequence", "batch"])
def test_it_equals_its_plain_loop_at_length(pool: str, lengths: tuple[int, ...], rule: str) -> None:
    small = ModelConfig(vocabulary=5, width=8, layers=1, heads=2, mlp="gelu", mlp_width=8)
    equals_its_plain_loop(part_of({"pool": pool, "experts": 4}, small), lengths, rule)


def test_gates_are_the_scores_as_they_are() -> None:
    """A token that all experts take is weighted by a softmax, which sums to 1; one that a single expert
    takes by less than that."""
    part = part_of({"experts": 2, "capacity": 1.0})
    with torch.no_grad():
        part.bank.up.copy_(part.bank.up[:1].expand_as(part.bank.up))  # all experts alike
        part.bank.down.copy_(part.bank.down[:1].expand_as(part.bank.down))
    x_BTD = torch.randn(1, 40, SHAPE.width, dtype=torch.float64)
    out_TD = part(x_BTD, Context())[0]
    alike_TD = torch.stack([naive.expert(part.bank, 0, x_D) for x_D in x_BTD[0]])
    weight_T = (out_TD * alike_TD).sum(1) / alike_TD.square().sum(1)
    scores_TE = (x_BTD[0] @ part.router.T).softmax(-1)
    taken_TE = torch.stack(
        [torch.isin(torch.arange(40), torch.tensor(naive.best(s_T, 20))) for s_T in scores_TE.T], 1
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
    torch.nn.init.zeros_(part.router)
    out_TD = part(torch.randn(1, 9, SHAPE.width, dtype=torch.float64), Context())[0]
    assert out_TD.any(1).tolist() == [True] * 5 + [False] * 4


def test_strangers_change_what_a_batch_pool_trains_on_and_nothing_of_what_is_predicted() -> None:
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
        scores_BTE = (x_BTD @ part.router.T).softmax(-1)
        if pool == "batch":
            scores_BTE = scores_BTE.flatten(0, 1)[None]
        k = scores_BTE.shape[1] // 4
        seen.append(scores_BTE.topk(k, dim=1).values[:, -1].mean(0).detach())
        part(x_BTD, Context())
    average_E = torch.zeros(8, dtype=torch.float64)
    for n, lowest_E in enumerate(seen, start=1):
        average_E += max(1 / n, 0.25) * (lowest_E - average_E)
    torch.testing.assert_close(part.threshold.value, average_E, rtol=1e-5, atol=0)
    part.eval()(x_BTD, Context())
    part.train()(x_BTD, Context(selection="causal"))
    assert part.threshold.updates == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": 0}, "experts is 0; it must be 1 or more"),
        ({"capacity": 9.0}, "capacity is 9 with 8 experts; it must lie above 0"),
        ({"capacity": 0.0}, "capacity is 0 with 8 experts"),
        ({"expert_width": 0}, "expert_width is 0; it must be 1 or more"),
        ({"threshold_decay": 1.0}, "threshold_decay is 1.0; it must lie in"),
        ({"pool": "world"}, "'pool' is 'world'; it must be one of 'sequence', 'batch'"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_router("expert_choice", options)


@pytest.fixture(params=OPTIONS)
def scheme(request: pytest.FixtureRequest) -> checks.Scheme:
    shape = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48)
    return checks.Scheme("expert_choice", OPTIONS[request.param], shape)


def test_it_costs_what_it_selects(scheme: checks.Scheme) -> None:
    checks.costs_what_it_selects(scheme, torch.float32)


def test_it_costs_what_it_promises(scheme: checks.Scheme) -> None:
    checks.costs_what_it_promises(scheme, torch.float32)


def test_frozen_parts_cost_no_gradient(scheme: checks.Scheme) -> None:
    checks.frozen_parts_cost_no_gradient(scheme)


def test_it_decodes_what_it_scores(scheme: checks.Scheme) -> None:
    checks.decodes_what_it_scores(scheme)


def test_it_passes_the_audit(scheme: checks.Scheme) -> None:
    checks.passes_the_audit(scheme)


def test_it_runs_again_as_it_ran(scheme: checks.Scheme) -> None:
    checks.runs_again_as_it_ran(scheme)


def test_it_stands_in_every_dtype(scheme: checks.Scheme) -> None:
    checks.stands_in_every_dtype(scheme)


def test_it_saves_and_loads(scheme: checks.Scheme) -> None:
    checks.saves_and_loads(scheme)
