"""A run that only infers shapes is no work next to the run that does it."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from modbench import FlopCounter
from modbench.ledger import component

ROWS, WIDTH, HIDDEN = 12, 16, 64
ONCE = 2 * ROWS * WIDTH * HIDDEN


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))


def on_meta(module: nn.Module) -> None:
    copy.deepcopy(module).to("meta")(torch.empty(ROWS, WIDTH, device="meta")).sum().backward()


def on_fake_tensors(module: nn.Module) -> None:
    with FakeTensorMode():
        mlp()(torch.randn(ROWS, WIDTH)).sum().backward()


@pytest.mark.parametrize("infer", [on_meta, on_fake_tensors])
def test_shapes_are_inferred_for_nothing(infer: Callable[[nn.Module], None]) -> None:
    module, x = mlp(), torch.randn(ROWS, WIDTH)
    with FlopCounter() as alone:
        infer(module)
    assert alone.total == 5 * ONCE  # without the gradient by the input
    with FlopCounter() as counter:
        with component("shapes", 0):
            infer(module)
        with component("mlp", 0), torch.no_grad():
            module(x)
        infer(module)
    assert counter.total == counter.total_model == counter.executed == 2 * ONCE
    assert counter.by_op == {"aten::addmm": 2 * ONCE}
    assert {key[1] for key in counter.ledger.entries} == {"mlp"}


def test_a_small_remainder_with_values_does_not_hide_a_program_on_meta() -> None:
    with FlopCounter() as counter:
        on_meta(mlp())
        torch.ones(8, 1) @ torch.ones(1, 8)
    assert counter.total == 5 * ONCE + 2 * 8 * 8


def test_the_first_step_of_a_pipeline_costs_what_the_second_does() -> None:
    """PyTorch 2.13 infers a stage's shapes on tensors with values."""
    x, target = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        stage = PipelineStage(mlp(), 0, 1, torch.device("cpu"))
        schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=nn.functional.mse_loss)
        counters = FlopCounter(), FlopCounter()
        for counter in counters:
            with counter:
                schedule.step(x, target=target)
    finally:
        dist.destroy_process_group()
    first, second = counters
    assert first.total == second.total == second.executed == 5 * ONCE
    assert first.executed == 5 * ONCE + 2 * ONCE // 2  # the forward pass of one of two microbatches


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def _grouped_rows() -> Tensor:
    ends = torch.tensor([2, 5], dtype=torch.int32)  # of 8 rows
    return F.grouped_mm(_drawn(8, 16), _drawn(2, 16, 32), offs=ends)


def _grouped_inner() -> Tensor:
    ends = torch.tensor([2, 5], dtype=torch.int32)
    return F.grouped_mm(_drawn(16, 8), _drawn(8, 32), offs=ends)


def _padded_bag() -> Tensor:
    indices, start = torch.tensor([0, 3, 0, 1]), torch.tensor([0])
    given = {"per_sample_weights": torch.randn(4), "mode": "sum", "padding_idx": 0}
    return F.embedding_bag(indices, torch.randn(8, 7), start, **given)


@pytest.mark.parametrize(
    ("run", "read", "unread"),
    [
        (_grouped_rows, 2 * 5 * 16 * 32, 2 * 8 * 16 * 32),
        (_grouped_inner, 2 * 16 * 5 * 32, 2 * 16 * 8 * 32),
        (_padded_bag, 2 * 2 * 7, 2 * 4 * 7),
    ],
)
def test_values_that_decide_the_flops_of_an_op_count_in_full_where_there_are_none(
    run: Callable[[], Tensor], read: int, unread: int
) -> None:
    with FlopCounter() as counter:
        run()
    assert counter.total == read
    with FakeTensorMode(), FlopCounter() as counter:
        run()
    assert counter.total == unread
