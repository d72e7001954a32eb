"""Two ranks on one machine: the sum of their FLOPs is what one process counts."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.multiprocessing
from counter_parallel_cases import KINDS, STEP, training_step
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from modbench import FlopCounter
from modbench.counting.zero_flop_ops import is_free

RANKS = 2


def collectives() -> None:
    mesh = init_device_mesh("cpu", (RANKS,))
    x = torch.ones(4, 3)
    gathered = [torch.empty_like(x) for _ in range(RANKS)]
    dist.all_reduce(x)
    dist.broadcast(x, 0)
    dist.reduce(x, 0)
    dist.all_gather(gathered, x)
    dist.all_gather_into_tensor(torch.empty(4 * RANKS, 3), x)
    dist.all_to_all_single(torch.empty_like(x), x)
    dist.scatter(x, gathered if dist.get_rank() == 0 else None)
    dist.send(x, 1) if dist.get_rank() == 0 else dist.recv(x, 0)
    dist.barrier()
    for result in (
        functional.all_reduce(x, "sum", mesh),
        functional.all_gather_tensor(x, 0, mesh),
        functional.reduce_scatter_tensor(x, "sum", 0, mesh),
        functional.all_to_all_single(x, None, None, mesh),
        functional.all_gather_tensor_autograd(x, 0, mesh),
    ):
        functional.wait_tensor(result)


def rank(number: int, folder: str) -> None:
    """Write what each kind of step counts, the first time and the second."""
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=number, world_size=RANKS)
    steps = {kind: training_step(kind) for kind in KINDS} | {"collectives": collectives}
    totals = torch.zeros(len(steps), 2, dtype=torch.long)
    for row, step in enumerate(steps.values()):
        for repetition in range(2):
            with FlopCounter() as counter:
                step()
            totals[row, repetition] = counter.total
    torch.save(totals, os.path.join(folder, f"rank{number}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def totals(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    """By rank: FLOPs by step and repetition."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{number}.pt") for number in range(RANKS)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_of_a_training_step_sum_up_to_one_process(kind: str, totals: list[Tensor]) -> None:
    """The second step of a tensor-parallel model finds DTensor's caches filled, and counts the same."""
    row = KINDS.index(kind)
    for of_rank in totals:
        assert of_rank[row].tolist() == [STEP // RANKS, STEP // RANKS]


def test_collectives_cost_nothing(totals: list[Tensor]) -> None:
    assert [of_rank[-1].tolist() for of_rank in totals] == [[0, 0], [0, 0]]


def test_a_collective_with_a_matmul_in_it_is_not_free() -> None:
    import torch.distributed._symmetric_memory

    assert not is_free(torch.ops.symm_mem.fused_all_gather_matmul.default)
