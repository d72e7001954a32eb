"""The optimizer of a run: AdamW; or Muon (Jordan et al. 2024) for the matrices of the blocks, with the
adjustment of Liu et al. 2025 (arXiv:2502.16982, section 2.2), next to AdamW for all else.

B matrices of a bank, M rows, N columns.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from modbench.ledger import OUTSIDE, Flops, Ledger
from modbench.model.language_model import LanguageModel
from modbench.train.config import TrainConfig

#: As the defaults of `torch.optim.Muon`: its momentum and its iteration.
MOMENTUM, STEPS, COEFFICIENTS, EPSILON = 0.95, 5, (3.4445, -4.7750, 2.0315), 1e-7
#: Last words of the names of parts that score tokens.
_SCORES = ("router", "scorer", "predictor")


class Optimizers:
    """Optimizers that take their steps together, each of its own parameters."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> Mapping[Tensor, Any]:
        return {parameter: of for part in self.parts for parameter, of in part.state.items()}

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for number, part in enumerate(self.parts):
            part.load_state_dict(state[str(number)])


Optimizer = torch.optim.Optimizer | Optimizers


def build_optimizer(model: LanguageModel, train: TrainConfig) -> Optimizer:
    """The optimizer of ``model``, with weight decay on matrices; vectors and the embedding have none. A
    group's ``peak`` is its peak learning rate.

    With ``muon``, `torch.optim.Muon` trains the matrices of the blocks, and `BankMuon` banks of matrices
    (`muon_parameters`). A matrix is what the model stores: where queries, keys and values are one
    weight, or gate and up, it is one matrix."""
    parts: list[torch.optim.Optimizer] = []
    chosen = muon_parameters(model) if train.optimizer == "muon" else []
    peak = float(train.muon_learning_rate or train.learning_rate)
    decay = train.weight_decay
    if matrices := [p for p in chosen if p.dim() == 2]:
        group = {"params": matrices, "peak": peak}
        adjusted = "match_rms_adamw"
        parts.append(torch.optim.Muon([group], lr=peak, weight_decay=decay, adjust_lr_fn=adjusted))
    if banks := [p for p in chosen if p.dim() > 2]:
        parts.append(BankMuon([{"params": banks, "peak": peak}], lr=peak, weight_decay=decay))
    taken = {*map(id, chosen)}
    parameters = [p for p in model.parameters() if id(p) not in taken]
    matrices = [p for p in parameters if p.dim() >= 2 and p is not model.embedding.weight]
    others = [p for p in parameters if p.dim() < 2 or p is model.embedding.weight]
    peak = float(train.learning_rate)
    groups = [
        {"params": matrices, "weight_decay": decay, "peak": peak},
        {"params": others, "weight_decay": 0.0, "peak": peak},
    ]
    betas = (train.beta1, train.beta2)
    adamw = torch.optim.AdamW(groups, lr=peak, betas=betas, fused=True)
    return Optimizers([*parts, adamw]) if parts else adamw


class BankMuon(torch.optim.Optimizer):
    """`torch.optim.Muon` with ``match_rms_adamw`` for banks of matrices (..., M, N), such as experts,
    each matrix by itself. The bits may differ from those of single matrices, since batched matmuls in
    bfloat16 may add in another order."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": MOMENTUM})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for bank in group["params"]:
                if bank.grad is None:
                    continue
                state = self.state[bank]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(bank.grad)
                mean = state["momentum_buffer"].lerp_(bank.grad, 1 - momentum)
                update_BMN = orthogonalised(bank.grad.lerp(mean, momentum).flatten(0, -3))
                bank.mul_(1 - rate * group["weight_decay"])
                adjusted = rate * 0.2 * math.sqrt(max(bank.shape[-2:]))
                bank.add_(update_BMN.view_as(bank), alpha=-adjusted)


def orthogonalised(x_BMN: Tensor) -> Tensor:
    """Return each matrix with its singular values moved to about 1, by the Newton-Schulz iteration of
    `torch.optim.Muon` in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = x_BMN.shape[-2] > x_BMN.shape[-1]
    x_BMN = x_BMN.bfloat16()
    x_BMN = x_BMN.mT if tall else x_BMN
    x_BMN = x_BMN / torch.linalg.vector_norm(x_BMN, dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    for _ in range(STEPS):
        gram_BMM = x_BMN @ x_BMN.mT
        gram_BMM = torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c)
        x_BMN = torch.baddbmm(x_BMN, gram_BMM, x_BMN, beta=a)
    return x_BMN.mT.contiguous() if tall else x_BMN


def muon_parameters(model: LanguageModel) -> list[nn.Parameter]:
    """The matrices of the blocks of ``model``, and banks of matrices, which have more dimensions: the
    trained parameters of `model.layers` whose last two dimensions are 2 or more. Excluded are those

    - of embeddings and convolutions, and biases, such as those of a bank;
    - that a part outside the blocks has, too;
    - of routers: of a part called ``router``, ``scorer`` or ``predictor``, or ``..._router`` and so on;
      and a matrix called ``gate``, or ``..._gate``, whose shorter side is the number of experts of the
      part that has it.
    """
    blocks = {*model.layers.modules()}
    outside = {
        id(p) for part in model.modules() if part not in blocks for p in part._parameters.values()
    }
    chosen = dict[int, nn.Parameter]()
    for block in model.layers:
        for path, parameter in _parameters(block, ()):
            if id(parameter) not in outside and _is_matrix(path, parameter):
                chosen[id(parameter)] = parameter
    return list(chosen.values())


#: The parts from a block to a parameter, each with the name of the next one.
_Path = tuple[tuple[nn.Module, str], ...]


def _parameters(part: nn.Module, path: _Path) -> Iterator[tuple[_Path, nn.Parameter]]:
    for name, parameter in part._parameters.items():
        if parameter is not None:
            yield (*path, (part, name)), parameter
    for name, inner in part._modules.items():
        if inner is not None:
            yield from _parameters(inner, (*path, (part, name)))


def _is_matrix(path: _Path, parameter: nn.Parameter) -> bool:
    if not parameter.requires_grad or parameter.dim() < 2 or min(parameter.shape[-2:]) < 2:
        return False
    part, name = path[-1]
    if isinstance(part, nn.Embedding | _ConvNd) or name.endswith("bias"):
        return False
    return not any(_scores(part, name, parameter) for part, name in path)


def _scores(part: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Return True if what ``part`` calls ``name``, with ``parameter``, scores tokens."""
    word = name.rpartition("_")[2]
    if word != "gate":
        return word in _SCORES
    experts = set[int]()
    for inner in part.modules():
        if isinstance(inner, nn.ModuleList):
            experts.add(len(inner))
        elif not isinstance(inner, _ConvNd):
            experts |= {bank.shape[0] for bank in inner.parameters(recurse=False) if bank.dim() > 2}
    return parameter.dim() == 2 and min(parameter.shape) in experts


def optimizer_ledger(model: LanguageModel, train: TrainConfig) -> Ledger:
    """The FLOPs of a step of the optimizer, in each process: of Muon, five iterations of three matmuls
    for each matrix, whose shorter side counts as rows. Only convention ``executed`` counts them. AdamW
    has no matmul."""
    flops = 0
    for parameter in muon_parameters(model) if train.optimizer == "muon" else ():
        rows, columns = sorted(parameter.shape[-2:])
        matrices = parameter.numel() // (rows * columns)
        flops += STEPS * matrices * 2 * rows * rows * (2 * columns + rows)
    return Ledger({(OUTSIDE, "optimizer", "update"): Flops(0, 0, flops)})


def optimizer_flops_per_token(model: LanguageModel, train: TrainConfig) -> int | float:
    """FLOPs of `optimizer_ledger`, in all processes, for each training token."""
    flops = train.ranks * optimizer_ledger(model, train).total("executed")
    tokens = train.batch * train.sequence
    return flops / tokens if flops % tokens else flops // tokens
