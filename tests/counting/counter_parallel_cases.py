"""Cases for FLOP counters: one rank of data-parallel, sharded and tensor-parallel training.

Each case is a process group of its own, so that any number of processes can run it: a rank's FLOPs are
its share. `training_step` is also what `test_counter_distributed` runs on two ranks.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from counter_case import Case, Work, cases, mm
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

ROWS, WIDTH, HIDDEN = 12, 16, 64
KINDS = ("DDP", "FSDP2", "tensor parallel")

#: Forward and backward, of all ranks together; the input has no gradient.
STEP = 2 * mm(ROWS, WIDTH, HIDDEN) + 3 * mm(ROWS, HIDDEN, WIDTH)


def training_step(kind: str) -> Callable[[], object]:
    """Return a training step of this rank of the process group. Data-parallel ranks share the rows."""
    ranks = dist.get_world_size()
    model: nn.Module = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))
    rows = ROWS // ranks
    if kind == "DDP":
        model = DistributedDataParallel(model)
    elif kind == "FSDP2":
        mesh = init_device_mesh("cpu", (ranks,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        mesh = init_device_mesh("cpu", (ranks,))
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        rows = ROWS
    x = torch.randn(rows, WIDTH)
    return lambda: model(x).square().sum().backward()


def _alone(kind: str) -> Work:
    def run() -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            training_step(kind)()
        finally:
            dist.destroy_process_group()

    return Work(run=run)


PARALLEL_CASES: list[Case] = cases(
    "parallel training, one rank",
    ("DDP", STEP, lambda: _alone("DDP")),
    ("FSDP2", STEP, lambda: _alone("FSDP2")),
    ("tensor parallel", STEP, lambda: _alone("tensor parallel")),
)
