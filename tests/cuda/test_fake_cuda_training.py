"""A training step of every scheme and preset on a GPU, by fake CUDA tensors: its kernels, where the host
waits, its FLOPs, and its compiled program.

B sequences, T tokens.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from no_card import why_not

if reason := why_not():
    pytest.skip(reason, allow_module_level=True)

import numpy as np
import torch
import torch._dynamo as dynamo
import torch.distributed as dist
from fake_cuda import CUDA, SCHEMES, Watch, built, fake_cuda, on_cuda, tokens
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.testing._internal.distributed.fake_pg import FakeStore

from modbench.counting.counter import FlopCounter
from modbench.data.batches import Batches
from modbench.kernels.cross_entropy import cross_entropy, recomputes_logits
from modbench.ledger import Workload
from modbench.model.block import Block
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace
from modbench.routing.balance import load_of
from modbench.routing.registry import preset_options, router_names
from modbench.train import loop
from modbench.train.compiled import compiled, eager
from modbench.train.config import TrainConfig
from modbench.train.optimizer import build_optimizer
from modbench.train.ranks import ALONE, Ranks
from modbench.train.schedule import Schedule
from modbench.train.step import parts_of, passes, training_step

# torch.compile's own.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)

TRAIN = TrainConfig(sequence=128, batch=4, micro_batch=2)
#: Routers whose number of routed tokens depends on the scores: where the host waits for it in a training
#: step. Their routed layers run eagerly between compiled parts.
READ = {"counts_to_host in RoutedExperts._assign", "nonzero_indices in dispatched"}
PLACES = "copy to cuda in GatheredTokens._slots"
DATA_DEPENDENT = {
    "expert_threshold": READ,
    "relu_routing": READ,
    "mixture_of_recursions": {"counts_to_host in Recursions._gathered", PLACES},
    "threshold_skip": {"counts_to_host in DepthRouted._by_threshold", PLACES},
}
#: Presets whose step waits where their router's does not: a selection that the host computes.
WAITS = {"mod:stride": {"copy to cuda in _strided"}}
#: Routers with experts whose counts stay on the device.
GROUPED = {"expert_choice", "mode_integrated", "mode_staged", "token_choice"}
#: Routers, and presets that run other code and not only other numbers.
COMPILED = [
    name for name in SCHEMES if any(isinstance(v, str) for v in preset_options(name)[1].values())
]
COMPILED += router_names()


def router_of(scheme: str) -> str:
    return scheme.partition(":")[0]


def stated_waits(scheme: str) -> set[str]:
    return WAITS.get(scheme, DATA_DEPENDENT.get(router_of(scheme), set()))


def batch_of(model: LanguageModel) -> tuple[Tensor, Tensor]:
    sizes = TRAIN.batch, TRAIN.sequence, model.config.vocabulary
    return tokens(*sizes), tokens(*sizes)


def step(model: LanguageModel, **more: Any) -> Tensor:
    """Take a training step in bfloat16; return its loss."""
    optimizer = build_optimizer(model, TRAIN)
    loss, _ = training_step(model, optimizer, TRAIN, batch_of(model), torch.bfloat16, **more)
    return loss


def expect_kernels(watch: Watch, scheme: str) -> None:
    """Attention without a mask, grouped matmuls where experts have static shapes, a fused optimizer."""
    attention = {"_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"}
    assert {name for name in watch.ops if "attention" in name} == attention
    assert ("_grouped_mm" in watch.ops) == (router_of(scheme) in GROUPED)
    assert "_fused_adamw_" in watch.ops


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_step_runs_fast_kernels_and_waits_only_where_stated(scheme: str) -> None:
    model = built(scheme).train()
    with fake_cuda(uneven=True) as watch:
        on_cuda(model)
        loss = step(model)
        assert loss.device == torch.device("cuda", 0)
    expect_kernels(watch, scheme)
    assert set(watch.waits) == stated_waits(scheme)
    assert watch.reads <= model.config.layers * TRAIN.micro_batches


@pytest.mark.parametrize("scheme", ["vanilla", "mod:gaussian", "token_choice:deepseek_v3"])
def test_a_step_of_several_processes_waits_no_more(scheme: str) -> None:
    """Without DDP, whose buckets take no fake tensors."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        train = replace(TRAIN, batch=2 * TRAIN.batch, parallel={"data": 2})
        model = built(scheme).train()
        with fake_cuda(uneven=True) as watch:
            on_cuda(model)
            optimizer, ranks = build_optimizer(model, train), Ranks(number=1, count=2, joined=True)
            batch = batch_of(model)
            training_step(model, optimizer, train, batch, torch.bfloat16, ranks=ranks)
    finally:
        dist.destroy_process_group()
    expect_kernels(watch, scheme)
    assert set(watch.waits) == stated_waits(scheme)


@pytest.mark.parametrize("scheme", COMPILED)
def test_a_compiled_step_is_one_program(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the scores decide the number of tokens, routed layers alone leave it."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    whole = router_of(scheme) not in DATA_DEPENDENT
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=whole))
    model = built(scheme).train()
    with fake_cuda(uneven=True) as watch:
        on_cuda(model)
        step(model, losses=compiled(eager(model), model, "auto"))
    expect_kernels(watch, scheme)
    counters = dynamo.utils.counters
    if whole:
        assert counters["stats"]["unique_graphs"] == 1
    else:
        assert counters["stats"]["unique_graphs"] >= 1
        assert all("_run_eagerly" in why for why in counters["graph_break"])
    # A program has no frames: its waits are of the function that runs it.
    waits = {wait.replace("_strided", "eager") for wait in stated_waits(scheme)}
    assert set(watch.waits) == waits


def steps_of_a_run(model: LanguageModel, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take two steps as `modbench run` does, the first one counted. The host's wait for loss and counts
    is noted, and answered with nominal counts."""
    loads: list[Workload] = []

    def read(loss: Tensor, traces: list[Any]) -> tuple[float, list[Any]]:
        watch.note("loss and counts")
        return 1.0, [model.expected_counts(loads[0]) for _ in traces]

    monkeypatch.setattr(Trace, "read", staticmethod(read))
    monkeypatch.setattr(loop._Run, "count", lambda run, number: None)  # tested with FLOPs, below
    monkeypatch.setattr(loop._Run, "batch", lambda run, step: batch_of(run.model))
    text = Batches(np.zeros(1000, dtype=np.uint16), sequence=128, batch=4, seed=0)
    schedule = Schedule(budgets=(10**12,))
    run = loop._Run(model, text, TRAIN, schedule, torch.bfloat16, lambda: 0.0, ALONE)
    run.losses = eager(model)
    loads.append(run.load)
    for _ in range(2):
        run.take_step(run.steps_left(), lambda: False)


@pytest.mark.parametrize("router", router_names())
def test_a_step_of_a_run_waits_once_more_for_loss_and_counts(
    router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(router).train()
    with fake_cuda(uneven=True) as watch:
        on_cuda(model)
        steps_of_a_run(model, watch, monkeypatch)
    assert watch.waits.pop("loss and counts in _Run.take_step") == 2
    assert set(watch.waits) == stated_waits(router)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("router", router_names())
def test_flops_on_a_gpu_are_those_of_the_ledger(router: str, recompute: bool) -> None:
    """The backward pass runs in a thread of autograd's own."""
    model = built(router).train()
    train = replace(TRAIN, recompute=recompute)
    load = Workload.uniform(train.rows, train.sequence, "train", checkpoint=recompute)
    with fake_cuda():
        on_cuda(model)
        with FlopCounter() as counter:
            _, trace = passes(eager(model), parts_of(batch_of(model), train)[0], torch.bfloat16, train)
        counts = model.expected_counts(load)
        if router == "mode_integrated":  # fake assignments count in full, those to no-ops, too
            every = train.rows * train.sequence * model.router.top_k  # type: ignore[union-attr, operator]
            counts = dict.fromkeys(counts, (every,))
        counts = {layer: counts[layer] for layer in trace._counts}
        assert counter.ledger == model.loss_ledger(replace(load, counts=counts))
    assert (counter.executed > 1.2 * counter.total) == recompute


@pytest.mark.parametrize(("rows", "again"), [(8_192, 0), (10_496, 0), (10_497, 1)])
def test_logits_are_computed_twice_only_where_memory_asks_for_it(rows: int, again: int) -> None:
    """Those of a pass of gpu.toml, of 8,192 rows, fit a GPU at once."""
    with fake_cuda():
        x_ND = torch.empty(rows, 64, device=CUDA, requires_grad=True)
        weight_VD = torch.empty(50_304, 64, device=CUDA, requires_grad=True)
        targets_N = torch.empty(rows, dtype=torch.long, device=CUDA)
        with FlopCounter() as counter:
            cross_entropy(x_ND, weight_VD, targets_N).backward()
        assert recomputes_logits(rows, weight_VD) == bool(again)
    assert counter.executed == (3 + again) * 2 * rows * 64 * 50_304


def test_assignments_are_counted_without_sums_by_index() -> None:
    """On a GPU, deterministic ones sort the indices and add equal ones one after another."""
    with fake_cuda() as watch:
        assert load_of(torch.empty(8_192, 8, dtype=torch.long, device=CUDA), 64).shape == (64,)
    assert not {name for name in watch.ops if "index" in name or "scatter" in name}


# Faults that these tests are for, each planted once.


def test_a_new_host_read_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Block.forward

    def forward(self: Block, x_BTD: Tensor, context: Any) -> Tensor:
        return right(self, 2 * x_BTD if x_BTD.sum() > 0 else x_BTD, context)

    monkeypatch.setattr(Block, "forward", forward)
    model = built("vanilla").train()
    with fake_cuda():
        on_cuda(model)
        with pytest.raises(DataDependentOutputException):
            step(model)


def test_a_host_read_between_two_steps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = loop.training_step

    def training_step(*given: Any, **more: Any) -> Any:
        loss, traces = right(*given, **more)
        return loss * float(loss.item() > 0), traces

    monkeypatch.setattr(loop, "training_step", training_step)
    model = built("vanilla").train()
    with fake_cuda() as watch:
        on_cuda(model)
        with pytest.raises(DataDependentOutputException):
            steps_of_a_run(model, watch, monkeypatch)


def test_a_mask_in_attention_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=CUDA)
        return right(query, key, value, **{**more, "attn_mask": mask, "is_causal": False})

    model = built("vanilla").train()
    with fake_cuda() as watch:
        right = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        on_cuda(model)
        step(model)
        monkeypatch.undo()
    with pytest.raises(AssertionError):
        expect_kernels(watch, "vanilla")


def test_a_scheme_that_leaves_the_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Block.forward

    def forward(self: Block, x_BTD: Tensor, context: Any) -> Tensor:
        print(end="")  # Dynamo leaves a program here
        return right(self, x_BTD, context)

    monkeypatch.setattr(Block, "forward", forward)
    with pytest.raises(dynamo.exc.Unsupported):
        test_a_compiled_step_is_one_program("vanilla", monkeypatch)


@pytest.mark.parametrize("back", [False, True])
def test_a_copy_that_waits_is_found(back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Block.forward

    def forward(self: Block, x_BTD: Tensor, context: Any) -> Tensor:
        if back:
            x_BTD.cpu()
        else:
            x_BTD = x_BTD * torch.tensor([2.0], device=x_BTD.device)
        return right(self, x_BTD, context)

    monkeypatch.setattr(Block, "forward", forward)
    model = built("vanilla").train()
    with fake_cuda() as watch:
        on_cuda(model)
        step(model)
    assert sum(watch.waits.values()) == 4
