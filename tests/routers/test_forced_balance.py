"""Under forced balance, realised routing equals nominal routing for any weights, and is even.

B sequences, T tokens.
"""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from modbench.ledger import Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache
from modbench.model.trace import Trace
from modbench.routing.build import build_model
from modbench.routing.force_balance import even_experts, strided, strided_rows
from modbench.routing.registry import build_router, installed_modules, router_class
from modbench.routing.topk import capacity_tokens

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=384)

NAMED = [
    (name, preset)
    for name in installed_modules()
    for preset in ("", *router_class(name).presets)
    if preset not in ("deepseek_v3",)  # 256 experts: the same code in more time
]


def model_of(name: str, preset: str, **options: object) -> Decoder:
    given = {**router_class(name).presets.get(preset, {}), **options}
    return build_model(SHAPE, build_router(name, given), seed=3)


def forced(model: Decoder, tokens_BT: torch.Tensor, **fields: object) -> Trace:
    context = Context(forced_balance=True, **fields)  # type: ignore[arg-type]
    model(tokens_BT, context)
    return context.trace


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize(("name", "preset"), NAMED)
def test_realised_counts_equal_nominal_ones(name: str, preset: str, rule: str) -> None:
    model = model_of(name, preset)
    tokens_BT = torch.randint(97, (3, 37))
    with torch.no_grad():
        trace = forced(model, tokens_BT, selection=rule)
    workload = Workload.uniform(3, 37)
    assert model.ledger(replace(workload, counts=trace.counts)) == model.ledger(workload)


@pytest.mark.parametrize(("name", "preset"), NAMED)
def test_decoding_step_by_step_spends_the_nominal_flops(name: str, preset: str) -> None:
    model = model_of(name, preset).eval()
    tokens_BT = torch.randint(97, (2, 32))
    cache, parts = Cache(2), []
    with torch.no_grad():
        forced(model, tokens_BT[:, :19], selection="causal", cache=cache)
        for place in range(19, 32):
            past = tuple(cache.read)
            trace = forced(model, tokens_BT[:, place : place + 1], selection="causal", cache=cache)
            counts = trace.counts
            parts.append(
                model.ledger(Workload(lengths=(1, 1), phase="decode", past=past, counts=counts))
            )
    assert Ledger.sum(parts) == model.ledger(Workload.uniform(2, 13, "decode", past=19))


@pytest.mark.parametrize(("name", "preset"), NAMED)
def test_experts_get_equal_loads(name: str, preset: str) -> None:
    model = model_of(name, preset)
    loads = []
    for rule in ("topk", "causal"):
        with torch.no_grad():
            trace = forced(model, torch.randint(97, (4, 64)), selection=rule)
        loads += [
            load_E for (_, shown), load_E in trace.tensors.items() if shown == "load" and len(load_E) > 2
        ]
    for load_E in loads:
        assert load_E.max() - load_E.min() <= 1, load_E


def test_without_it_the_scores_decide() -> None:
    model = model_of("relu_routing", "")
    context = Context()
    model(torch.randint(97, (2, 32)), context)
    assert not context.trace.forced
    workload = Workload.uniform(2, 32)
    assert model.ledger(replace(workload, counts=context.trace.counts)) != model.ledger(workload)


def test_the_router_still_computes_and_learns() -> None:
    model = model_of("token_choice", "")
    context = Context(forced_balance=True)
    model(torch.randint(97, (2, 32)), context).square().mean().backward()
    assert context.trace.forced
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert "router" not in name or parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "name", ["mod", "threshold_skip", "expert_threshold", "expert_choice", "relu_routing"]
)
def test_padding_is_never_selected(name: str) -> None:
    model = model_of(name, "")
    lengths_B = torch.tensor([9, 23])
    with torch.no_grad():
        trace = forced(model, torch.randint(97, (2, 23)), selection="causal", lengths_B=lengths_B)
    workload = Workload(lengths=(9, 23))
    assert model.ledger(replace(workload, counts=trace.counts)) == model.ledger(workload)
    for (_, shown), selected_BT in trace.tensors.items():
        if shown == "selected":
            assert not selected_BT[0, 9:].any()


def test_a_stride_goes_on_where_it_was() -> None:
    for capacity, among in ((0.125, 1), (0.3, 1), (2.0, 3), (1.0, 1)):
        whole = strided(capacity, 0, 50, among)
        assert whole == strided(capacity, 0, 13, among) + strided(capacity, 13, 37, among)
        for tokens in range(51):
            assert sum(whole[:tokens]) == (capacity_tokens(capacity, tokens, among) if tokens else 0)


@pytest.mark.parametrize(("experts", "no_ops", "k"), [(8, 0, 2), (8, 8, 2), (5, 3, 4), (4, 1, 1)])
def test_a_token_meets_experts_in_turn_and_none_twice(experts: int, no_ops: int, k: int) -> None:
    none_NK = torch.empty(40, k, dtype=torch.long)
    context = Context(forced_balance=True)
    whole_NK = even_experts(none_NK, context, 0, experts, no_ops)
    assert all(len(set(row)) == k for row in whole_NK.tolist())
    assert torch.equal(whole_NK[7:], even_experts(none_NK[7:], context, 7, experts, no_ops))
    flat = whole_NK.flatten()
    for choices in range(len(flat)):
        assert int((flat[:choices] < experts).sum()) == choices * experts // (experts + no_ops)
    counts = flat.bincount(minlength=experts + no_ops).tolist()
    for kind in (counts[:experts], counts[experts:] or [0]):
        assert max(kind) - min(kind) <= 1


@pytest.mark.parametrize("name", ["token_choice", "mode_integrated", "mode_staged"])
def test_what_inference_mode_made_is_not_kept_for_training(name: str) -> None:
    model = model_of(name, "")
    tokens_BT = torch.randint(97, (2, 67))  # of a length that nothing else asks for
    with torch.inference_mode():
        forced(model, tokens_BT)
    model(tokens_BT, Context(forced_balance=True)).sum().backward()


def test_what_is_made_of_fake_tensors_is_not_kept_for_others() -> None:
    context, on = Context(forced_balance=True), torch.device("cpu")

    def made() -> list[torch.Tensor]:
        rows = strided_rows(0.25, [0, 0], 61, on)
        return [rows, even_experts(torch.empty(61, 2, dtype=torch.long), context, 0, 8)]

    with FakeTensorMode():
        assert all(isinstance(one, FakeTensor) for one in made())
    assert not any(isinstance(one, FakeTensor) for one in made())
