"""Compiled losses against eager ones: one program for each scheme whose shapes are known, and the same
numbers, gradients, counts and moving averages, step after step.

B sequences, T tokens.
"""

import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo.config as dynamo
from torch import Tensor

from modbench.counting.counter import FlopCounter
from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_names
from modbench.train.compiled import compiled, compiles, eager, programs
from modbench.train.config import TrainConfig
from modbench.train.optimizer import build_optimizer
from modbench.train.step import training_step

CPU, GPU = torch.device("cpu"), torch.device("cuda")
VOCABULARY, SEQUENCES = 64, 2
SHAPE = ModelConfig(vocabulary=VOCABULARY, width=32, layers=2, heads=2, mlp_width=1152)
#: Schemes whose routed layers run eagerly in float32: counts depend on the scores, or are integers
#: because `F.grouped_mm` needs bfloat16.
EAGER_LAYERS = {
    "expert_threshold",
    "mixture_of_recursions",
    "mode_integrated",
    "mode_staged",
    "relu_routing",
    "threshold_skip",
    "token_choice",
}
#: Schemes compiled in the same parts as token_choice.
ALIKE = ("expert_threshold", "mode_integrated", "relu_routing")
TOKENS = 24
CASES = [
    *((name, {}) for name in router_names() if name not in ALIKE),
    *(pytest.param(name, {}, marks=pytest.mark.full) for name in ALIKE),
    pytest.param("mod", {"causal": "ema_threshold"}, marks=pytest.mark.full),
    pytest.param("mod", {"scores": "gaussian"}, marks=pytest.mark.full),
    pytest.param("expert_choice", {"pool": "batch"}, marks=pytest.mark.full),
]

# torch.compile's own.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)


@pytest.fixture(autouse=True)
def _compiles_anew() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def drawn(step: int, tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    window_BT = torch.randint(VOCABULARY, (SEQUENCES, tokens + 1), generator=generator)
    return window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()


def both(name: str, options: dict[str, Any]) -> tuple[Decoder, Decoder]:
    shape = replace(SHAPE, layers=4) if name == "mixture_of_recursions" else SHAPE
    one, other = (build_model(shape, build_router(name, options)).train() for _ in range(2))
    return one, other


def same_step(one: Decoder, other: Decoder, program: Any, batch: Any, **context: Any) -> None:
    """A forward and backward pass of ``one`` without compilation and of ``other`` by ``program``."""
    a, b = Context(**context), Context(**context)
    loss, auxiliary = eager(one)(*batch, a)
    their_loss, their_auxiliary = program(*batch, b)
    for model, value in ((one, loss + auxiliary), (other, their_loss + their_auxiliary)):
        model.zero_grad()
        value.backward()
    torch.testing.assert_close(their_loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(their_auxiliary, auxiliary, rtol=1e-4, atol=1e-6)
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(theirs.grad, ours.grad, rtol=2e-4, atol=2e-6, msg=name)
    for ours, theirs in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    assert b.trace.counts == a.trace.counts
    assert b.trace.forced == a.trace.forced
    assert b.trace.tensors.keys() == a.trace.tensors.keys()
    for key, shown in a.trace.tensors.items():
        torch.testing.assert_close(b.trace.tensors[key], shown, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_one_program_computes_the_same(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = both(name, options)
    whole = name not in EAGER_LAYERS
    monkeypatch.setattr(torch, "compile", _traced(torch.compile, whole=whole))
    program = compiled(eager(other), other, "on")
    for step in range(2):
        same_step(one, other, program, drawn(step, TOKENS))
    if whole:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", ["vanilla", "mod", "expert_choice", "token_choice"])
def test_a_recomputed_layer_is_a_program_inside_its_checkpoint(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = both(name, {})
    monkeypatch.setattr(torch, "compile", _traced(torch.compile, whole=True))
    program = compiled(eager(other), other, "on", recompute=True)
    for step in range(2):
        same_step(one, other, program, drawn(step, TOKENS), checkpoint=True)
    made = programs()
    whole = [layer for layer in other.layers if not layer.has_data_dependent_shapes]
    assert made["breaks"] == 0
    assert made["graphs"] >= len(whole)
    assert made["graphs"] == 0 if not whole else made["graphs"] <= 2 * len(whole)


def _traced(compile: Any, *, whole: bool) -> Any:
    """torch.compile that traces and differentiates as inductor has it, and makes no kernels."""

    def run(function: Any, **settings: Any) -> Any:
        return compile(function, backend="aot_eager", fullgraph=whole, **settings)

    return run


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", [pytest.param("mode_staged", marks=pytest.mark.full), "vanilla"])
def test_kernels_that_inductor_makes_compute_the_same(name: str) -> None:
    one, other = both(name, {})
    program = compiled(eager(other), other, "on")
    for step in range(2):
        same_step(one, other, program, drawn(step, TOKENS))


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_steps_in_bfloat16_learn_alike() -> None:
    one, other = both("mod", {"capacity": 0.5})
    train = TrainConfig(compile="on")
    losses = []
    for model, run in ((one, None), (other, compiled(eager(other), other, "on"))):
        optimizer = build_optimizer(model, train)
        losses.append(
            [
                training_step(model, optimizer, train, drawn(0, TOKENS), torch.bfloat16, losses=run)[
                    0
                ].item()
                for _ in range(8)
            ]
        )
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[1][-1] < losses[1][0] - 0.1


def test_a_compiled_program_counts_as_the_eager_one() -> None:
    model, _ = both("mode_staged", {})
    program = torch.compile(eager(model), backend="aot_eager")
    batch = drawn(0, TOKENS)
    loss, auxiliary = program(*batch, Context())
    (loss + auxiliary).backward()
    context = Context()
    with FlopCounter() as counter:
        loss, auxiliary = program(*batch, context)
        (loss + auxiliary).backward()
    load = Workload.uniform(SEQUENCES, TOKENS, "train", counts=context.trace.counts)
    assert counter.total == model.ledger(load).total("full")


def test_experts_in_bfloat16_are_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", _traced(torch.compile, whole=True))
    model = build_model(SHAPE, build_router("token_choice", {})).bfloat16().train()
    loss, _ = compiled(eager(model), model, "on")(*drawn(0, TOKENS), Context())
    loss.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_no_layer_runs_eagerly_because_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """More layers with data-dependent shapes than PyTorch would compile programs for."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    shape = replace(SHAPE, layers=6)
    with dynamo.patch(
        recompile_limit=2, accumulated_recompile_limit=2, fail_on_recompile_limit_hit=True
    ):
        model = build_model(shape, build_router("threshold_skip", {}))
        with torch.no_grad():
            compiled(model.eval().forward, model, "on")(drawn(0, TOKENS)[0], Context())
        loss, _ = compiled(eager(model.train()), model, "on")(*drawn(0, TOKENS), Context())
    assert loss.isfinite()


def test_when_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert [compiles("auto", on) for on in (CPU, GPU)] == [False, True]
    assert [compiles("on", on) for on in (CPU, GPU)] == [True, True]
    assert [compiles("off", on) for on in (CPU, GPU)] == [False, False]


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(UserError, match=r"is found \(/nowhere/c\+\+\); install one"):
        compiles("on", CPU)
    assert compiles("on", GPU)
    assert not compiles("auto", CPU)
