"""Tokens of sequences that send unequally many, in one row, against the same ones filled up to the
longest, the plain twin: outputs, gradients, caches and counts.

B sequences, T tokens, D width.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, kv_heads=2, mlp_width=64)
LENGTHS = [300, 1, 170, 63]


def model_of(*, in_one_row: bool, dtype: torch.dtype = torch.float64) -> Decoder:
    """Whose averages let about half of the tokens in, of some sequences none."""
    router = build_router("mod", {"capacity": 0.5, "causal": "ema_threshold"})
    model = build_model(SHAPE, router, seed=3).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        model.train()(torch.randint(97, (4, 64), generator=generator), Context())
    for layer in model.layers:
        if hasattr(layer, "_in_one_row"):
            assert layer._in_one_row
            layer._in_one_row = in_one_row
    return model.eval()


def drawn() -> Tensor:
    return torch.randint(97, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(7))


def context_of(selection: str, *, cache: Cache | None = None) -> Context:
    return Context(selection=selection, lengths_B=torch.tensor(LENGTHS), cache=cache)


def real(values_BT: Tensor) -> Tensor:
    return torch.cat([row[:n] for row, n in zip(values_BT, LENGTHS, strict=True)])


@pytest.mark.parametrize("selection", ["causal", "topk"])
def test_outputs_and_gradients_are_the_twins(selection: str) -> None:
    results = []
    for in_one_row in (True, False):
        model = model_of(in_one_row=in_one_row)
        logits = real(model(drawn(), context_of(selection)))
        logits.square().mean().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters())])
    for row, filled in zip(*results, strict=True):
        torch.testing.assert_close(row, filled, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_the_cache_goes_on_as_the_twins_does() -> None:
    results = []
    for in_one_row in (True, False):
        model, cache = model_of(in_one_row=in_one_row), Cache(len(LENGTHS))
        parts = [real(model(drawn(), context_of("causal", cache=cache)))]
        for chunk in drawn()[:, :9].split(3, dim=1):  # what a cache knows tokens of is filled up
            parts.append(model(chunk, Context(selection="causal", cache=cache)).flatten(0, 1))
        entered = [cache.lengths(layer) for layer in range(SHAPE.layers)]
        results.append((torch.cat(parts), entered, cache.bytes))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-12)
    assert results[0][1:] == results[1][1:]
    assert len(set(results[0][1][1])) > 1  # they did send unequally many


@torch.no_grad()
@pytest.mark.parametrize(("selection", "cached"), [("causal", False), ("causal", True), ("topk", False)])
def test_it_runs_no_slot_that_nobody_sent(selection: str, cached: bool) -> None:
    spent = {}
    for in_one_row in (True, False):
        model = model_of(in_one_row=in_one_row, dtype=torch.float32)
        context = context_of(selection, cache=Cache(len(LENGTHS)) if cached else None)
        with FlopCounter() as counter:
            model(drawn(), context)
        workload = Workload(
            lengths=tuple(LENGTHS), phase="forward", counts=context.trace.counts, padding=True
        )
        for convention in ("model", "full", "executed"):
            assert counter.under(convention) == model.ledger(workload).total(convention)
        realised = model.ledger(replace(workload, padding=False)).by_component("full")
        ran = counter.by_component
        spent[in_one_row] = ran["mlp"] - realised["mlp"]
    slots = len(LENGTHS) * max(LENGTHS) - sum(LENGTHS)
    dense = SHAPE.layers // 2 * slots * 2 * 3 * SHAPE.width * SHAPE.hidden
    assert spent[True] == dense  # the dense blocks' own padding
    assert spent[False] > dense


def test_equal_counts_and_known_tokens_are_not_packed() -> None:
    x_BTD = torch.arange(2 * 3 * 1.0).view(2, 3, 1)
    selected_BT = torch.tensor([[True, True, False], [False, True, True]])
    alike = GatheredTokens(x_BTD, selected_BT, [2, 2], Context(), layer=0, in_one_row=True)
    assert alike.x_RKD.shape == (2, 2, 1)
    assert alike.context.segments == ()
    fewer_BT = selected_BT & torch.tensor([[True, False, True], [True, True, True]])
    packed = GatheredTokens(x_BTD, fewer_BT, [1, 2], Context(), layer=0, in_one_row=True)
    assert packed.x_RKD.flatten().tolist() == [0, 4, 5]
    assert list(packed.context.segments) == [1, 2]
    assert packed.context.positions_BT.tolist() == [[0, 1, 2]]
    cache = Cache(2)
    cache.extend(0, torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), [1, 0])
    known = GatheredTokens(
        x_BTD, fewer_BT, [1, 2], Context(selection="causal", cache=cache), layer=0, in_one_row=True
    )
    assert known.x_RKD.shape == (2, 2, 1)
    assert known.context.segments == ()


@torch.no_grad()
@pytest.mark.parametrize("entering", [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]], ids=str)
def test_the_newest_token_is_rounded_alike_beside_neighbours_and_others(entering: list[int]) -> None:
    """Neighbours are found by a view, others by their numbers: from the same update in float32 the same
    bits of bfloat16, and what doesn't enter stays as it is."""
    stream_B1D = torch.randn(4, 1, 64).bfloat16()
    update_R1D = torch.randn(sum(entering), 1, 64) * 3
    selected_B1 = torch.tensor(entering, dtype=torch.bool)[:, None]
    neighbours = GatheredTokens(stream_B1D, selected_B1, entering, Context(), layer=0)
    assert neighbours._slots.slots_S is None
    sum_B1D = neighbours.add_to(stream_B1D, update_R1D)
    spread_B1D, spread = torch.zeros(8, 1, 64).bfloat16(), [0] * 8
    for row, enters in enumerate(entering):
        spread_B1D[2 * row], spread[2 * row] = stream_B1D[row], enters
    others = GatheredTokens(
        spread_B1D, torch.tensor(spread, dtype=torch.bool)[:, None], spread, Context(), layer=0
    )
    assert (others._slots.slots_S is None) == (sum(entering) == 1)
    assert torch.equal(others.add_to(spread_B1D, update_R1D)[::2], sum_B1D)
    rounded_R1D = stream_B1D[selected_B1[:, 0]] + update_R1D.bfloat16()
    assert torch.equal(sum_B1D[selected_B1[:, 0]], rounded_R1D)
    assert torch.equal(sum_B1D[~selected_B1[:, 0]], stream_B1D[~selected_B1[:, 0]])
