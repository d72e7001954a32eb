"""Each timed case runs with the documented dtype, selection rule and logits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from timed_made_up import subject

from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.routing.registry import build_router
from modbench.timing import benchmark_case
from modbench.timing.benchmark_case import (
    BenchmarkCase,
    BenchmarkTarget,
    inference_cases,
    training_cases,
)


def in_bfloat16(**changes: Any) -> BenchmarkTarget:
    shorter = {"decode_past": [8], "decode_batches": [2], "decode_tokens": 2, **changes}
    return replace(subject(**shorter), dtype=torch.bfloat16)


def both(of: BenchmarkTarget, model: Decoder) -> list[BenchmarkCase]:
    return training_cases(model, of) + inference_cases(model, of)


def settings(model: Decoder, case: BenchmarkCase) -> set[tuple[Any, ...]]:
    """Of each forward pass that a run of ``case`` does: rule, logits, weights, output, autocast,
    gradients."""
    seen: set[tuple[Any, ...]] = set()
    prepared = case.prepare()
    prepared.before()

    def note(_: Decoder, given: tuple[torch.Tensor, Context], out: torch.Tensor) -> None:
        weights = {str(weight.dtype) for weight in model.parameters()}
        words = given[1].selection, given[1].logits, *weights, str(out.dtype)
        seen.add((*words, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))

    handle = model.register_forward_hook(note)
    prepared.run()
    handle.remove()
    return seen


def test_a_pass_is_under_the_training_rule_and_prompts_are_read_under_the_causal_one() -> None:
    of = in_bfloat16()
    model = of.build()
    seen = {case.phase: settings(model, case) for case in both(of, model) if case.phase != "train"}
    full, half = "torch.float32", "torch.bfloat16"
    assert seen == {
        "forward": {("topk", "all", full, half, True, False)},
        "prefill": {("causal", "last", half, half, False, False)},
        "decode": {("causal", "all", half, half, False, False)},
    }


def test_a_step_is_that_of_training_in_the_subjects_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    of, steps = in_bfloat16(), []
    right = benchmark_case.training_step

    def step(
        model: Decoder, optimizer: Any, train: Any, batch: Any, dtype: torch.dtype, **more: Any
    ) -> Any:
        steps.append((dtype, batch[0].shape, more["forced_balance"], torch.is_grad_enabled()))
        return right(model, optimizer, train, batch, dtype, **more)

    monkeypatch.setattr(benchmark_case, "training_step", step)
    model = of.build()
    (case,) = (case for case in both(of, model) if case.phase == "train")
    case.prepare().run()
    assert steps == [(torch.bfloat16, (2, 32), True, True)]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_padded_slots_are_dispatched_and_no_work_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of sequences that fill a layer unequally, whose experts' router is given padding."""
    monkeypatch.setattr(benchmark_case, "FORCED_BALANCE", False)
    of = subject(prefill_batch=4, decode_past=[8], decode_batches=[1])
    of = replace(of, router=build_router("mode_staged", {"capacity": 0.5}))
    model = of.build()
    (case,) = (case for case in both(of, model) if case.phase == "prefill")
    traces = case.prepare().run()
    entered: Mapping[Any, Any] = traces[0].counts
    assert any(min(counts) < max(counts) for (_, what), counts in entered.items() if what == "depth")
    flops = case.flops(model, traces)
    for convention in ("model", "executed"):
        assert flops["dispatched"][convention] > flops["realised"][convention]
