"""Several processes that train one model together, as `torchrun` starts them. Each has its own
sequences of the batch. By [train] parallel,

- ``data``: each has the whole model;
- ``shard``: weights, gradients and moments are shared out, and gathered layer by layer (FSDP2,
  `torch.distributed.fsdp.fully_shard`);
- ``expert``: the experts of each layer are shared out, and tokens travel to them.

A product of them has as many processes as the product of the numbers.

R processes, E experts, N rows, A rows that arrive, D model width.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from modbench.model.language_model import LanguageModel
from modbench.routing.expert_bank import ExpertBank
from modbench.routing.tokens import Noise
from modbench.train.config import TrainConfig
from modbench.train.optimizer import FUSED, ONE_BY_ONE
from modbench.train.ranks import Ranks

#: Between the keys of random streams of two processes; any odd number.
_KEYS_APART = 1_000_003


@dataclass(eq=False, kw_only=True)
class RankGroup(Ranks):
    """The processes of a run, seen from one of them."""

    shards: DeviceMesh | None = None  #: copies x shards
    experts: DeviceMesh | None = None  #: processes with the same experts x shares of the experts
    _banks: dict[int, Tensor] = field(default_factory=dict)  #: weights of experts by id, this share

    @classmethod
    def joined(cls, train: TrainConfig, device: str) -> "RankGroup":
        """Join the processes that `torchrun` has started for ``train``."""
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        count = dist.get_world_size()

        def mesh(size: int, names: tuple[str, str]) -> DeviceMesh | None:
            shape = (count // size, size)
            return init_device_mesh(device, shape, mesh_dim_names=names) if size > 1 else None

        parallel = train.parallel or {}
        return cls(
            number=dist.get_rank(),
            count=count,
            shards=mesh(parallel.get("shard", 1), ("copies", "shards")),
            experts=mesh(parallel.get("expert", 1), ("same", "shares")),
        )

    def part(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The sequences of this process in ``batch``, inputs and targets."""
        each = len(batch[0]) // self.count
        first = self.number * each
        inputs_BT, targets_BT = batch
        return inputs_BT[first : first + each], targets_BT[first : first + each]

    def spread(self, model: LanguageModel) -> None:
        """Share out the weights of ``model``, which all processes have built alike."""
        self._draw_apart(model)
        if self.experts is not None:
            for bank in [part for part in model.modules() if isinstance(part, ExpertBank)]:
                self._spread_bank(bank, self.experts)
        if self.shards is not None:
            from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

            mesh = self.shards if self.shards.size(0) > 1 else self.shards["shards"]
            left_out: Any = {p for p in model.parameters() if id(p) in self._banks}
            for part in [*model.layers, model]:
                fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=left_out)
            for method in ("loss", "losses"):
                register_fsdp_forward_method(model, method)

    def _draw_apart(self, model: LanguageModel) -> None:
        """Give each process noise of its own; the first keeps that of one process."""
        for noise in [part for part in model.modules() if isinstance(part, Noise)]:
            noise.key.add_(self.number * _KEYS_APART).bitwise_and_(2**31 - 1)

    def _spread_bank(self, bank: ExpertBank, mesh: DeviceMesh) -> None:
        shares, share = mesh.size(1), mesh.get_local_rank(1)
        for name in ("up", "down"):
            whole = getattr(bank, name)
            part = nn.Parameter(whole.detach().chunk(shares)[share].clone(), whole.requires_grad)
            setattr(bank, name, part)
            self._banks[id(part)] = part
        bank.exchange = exchange(mesh.get_group(1), shares)

    # Gradients.

    @torch.no_grad()
    def reduce(self, model: LanguageModel) -> None:
        """Make the gradients of ``model`` those of the mean loss of all processes, and its averages the
        means over them."""
        weights = [p for p in model.parameters() if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in weights], dtype=torch.uint8)
        used = self._sum(used.to(next(model.parameters()).device))
        for weight in [p for p, of in zip(weights, used.tolist(), strict=True) if of]:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if isinstance(weight, DTensor):  # reduced in the backward pass
                continue
            group = None
            if id(weight) in self._banks and self.experts is not None:
                group = self.experts.get_group(0)
            dist.all_reduce(weight.grad, group=group)
            weight.grad /= self.count
        for average in model.buffers():
            if average.is_floating_point():
                dist.all_reduce(average)
                average /= self.count

    @torch.no_grad()
    def clip(self, model: LanguageModel, most: float) -> None:
        """Scale the gradients down to the norm ``most``, as `torch.nn.utils.clip_grad_norm_`."""
        of_all = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
        of_shards, of_experts = of_all.clone(), of_all.clone()
        gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        for weight, gradient in gradients:
            square = _local(gradient).double().square().sum()
            if isinstance(gradient, DTensor):
                of_shards += square
            elif id(weight) in self._banks:
                of_experts += square
            else:
                of_all += square
        for squares, mesh in ((of_shards, self.shards), (of_experts, self.experts)):
            if mesh is not None:
                dist.all_reduce(squares, group=mesh.get_group(1))
        norm = math.sqrt(float(of_all + of_shards + of_experts))
        for _, gradient in gradients:
            _local(gradient).mul_(min(1.0, most / (norm + 1e-6)))

    # Agreement.

    def mean(self, loss: Tensor) -> Tensor:
        """The mean of ``loss`` over the processes."""
        return self._sum(loss) / self.count

    def sums(self, numbers: list[int]) -> list[int]:
        """The sum of each number over the processes."""
        return [sum(column) for column in zip(*self.all(numbers), strict=True)]

    def all(self, value: Any) -> list[Any]:
        """The ``value`` of each process."""
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def _sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def finite(self, weights: Iterable[Tensor]) -> bool:
        """True if all ``weights`` of all processes are finite."""
        return all(self.all(all(bool(_local(weight).isfinite().all()) for weight in weights)))

    # States as one process has them: checkpoints can be read by any number of processes.

    def model_state(self, model: LanguageModel) -> dict[str, Tensor]:
        """The whole state of ``model``. All processes call this together."""
        weights = dict(model.named_parameters(remove_duplicate=False))
        state = model.state_dict()
        for name, tensor in state.items():
            state[name] = self._whole(weights.get(name), tensor)
        return state

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state of ``optimizer``. All processes call this together."""
        state = optimizer.state_dict()
        return self._mapped(optimizer, state, self._whole, FUSED)

    def load(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        of_model: Mapping[str, Tensor],
        of_optimizer: dict[str, Any],
    ) -> None:
        """Load whole states."""
        weights = dict(model.named_parameters(remove_duplicate=False))
        model.load_state_dict({name: self._part(weights.get(name), of_model[name]) for name in of_model})
        self._draw_apart(model)
        optimizer.load_state_dict(self._mapped(optimizer, of_optimizer, self._part, ONE_BY_ONE))

    def _mapped(
        self,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        change: Callable[[Tensor, Tensor], Tensor],
        how: Mapping[str, bool | None],
    ) -> dict[str, Any]:
        """``state`` with ``change`` of each weight and each moment of it, for steps taken as ``how``."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        moments = {
            number: {name: change(weights[number], moment) for name, moment in of.items()}
            for number, of in state["state"].items()
        }
        return state | {
            "state": moments,
            "param_groups": [group | how for group in state["param_groups"]],
        }

    def _whole(self, weight: Tensor | None, tensor: Tensor) -> Tensor:
        """The whole of ``tensor``, which is ``weight`` or belongs to it."""
        if isinstance(tensor, DTensor):
            return tensor.full_tensor()
        if self.experts is not None and id(weight) in self._banks and tensor.dim():
            parts = [torch.empty_like(tensor) for _ in range(self.experts.size(1))]
            dist.all_gather(parts, tensor.contiguous(), group=self.experts.get_group(1))
            return torch.cat(parts)
        return tensor

    def _part(self, weight: Tensor | None, whole: Tensor) -> Tensor:
        """The inverse of `_whole`: what this process holds."""
        if isinstance(weight, DTensor) and whole.dim():
            there = whole.to(weight.device)
            return distribute_tensor(there, weight.device_mesh, weight.placements, src_data_rank=None)
        if self.experts is not None and id(weight) in self._banks and whole.dim():
            return whole.chunk(self.experts.size(1))[self.experts.get_local_rank(1)].clone()
        return whole


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


#: Rows of each expert.
Counts = Sequence[int] | Tensor
#: Runs the experts of this process on rows sorted by expert, (A, D).
Run = Callable[[Tensor, Counts], Tensor]


def exchange(group: dist.ProcessGroup, ranks: int) -> Callable[[Run, Tensor, Counts], Tensor]:
    """A function of (run, rows (N, D) sorted by expert, rows of each of all experts): the experts'
    outputs, (N, D), each of the experts computed where its weights are. All processes of ``group`` call
    it together."""

    def exchanged(run: Run, rows_ND: Tensor, counts: Counts) -> Tensor:
        sent_RE = torch.as_tensor(counts, device=rows_ND.device).to(torch.long).view(ranks, -1)
        got_RE = torch.empty_like(sent_RE)
        dist.all_to_all_single(got_RE, sent_RE, group=group)
        sent, got = sent_RE.sum(1).tolist(), got_RE.sum(1).tolist()
        used_ND = rows_ND[: sum(sent)]
        got_AD = all_to_all_single_autograd(used_ND.contiguous(), got, sent, group)
        # By process, then by expert; the experts want them by expert.
        experts_E = torch.arange(got_RE.shape[1], device=rows_ND.device)
        expert_A = experts_E.repeat(ranks).repeat_interleave(got_RE.flatten())
        order_A = expert_A.argsort(stable=True)
        done_AD = run(got_AD.index_select(0, order_A), got_RE.sum(0).tolist())
        back_AD = done_AD.index_select(0, order_A.argsort())
        out_ND = all_to_all_single_autograd(back_AD.contiguous(), sent, got, group)
        left = len(rows_ND) - len(used_ND)  # rows of no expert
        return torch.cat((out_ND, out_ND.new_zeros(left, out_ND.shape[1]))) if left else out_ND

    return exchanged
