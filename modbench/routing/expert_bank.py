"""A bank of equal expert MLPs, for tokens that come sorted by expert or in equal shares.

E experts, N rows (token-expert assignments), D model width, F hidden width; B sequences, T tokens,
S = B * T.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.kernels import matmul_dtype, mode
from modbench.kernels.expert_bank import Counts, expert_bank, fast
from modbench.ledger import Ledger, Workload, component
from modbench.model.config import ModelConfig
from modbench.model.init import normal_, residual_scale
from modbench.model.layer import weight_ledger
from modbench.model.mlp import up_columns
from modbench.routing.dispatch import from_experts
from modbench.routing.topk import nonzero_indices, pack_tokens


def expert_widths(
    model: ModelConfig, *, active: float, width: int | None, shared: int, shared_width: int | None
) -> tuple[int, int]:
    """Return the hidden width of each routed expert, and of all ``shared`` experts together; a token is
    processed by ``active`` routed experts and by all shared ones. A width that is None follows from the
    dense MLP's, so that active FLOPs are equal: all experts have the same width, and the remainder goes
    to the shared ones (DeepSeek-V3: 18432 = (8 + 1) * 2048). Raise a `UserError` if the dense width does
    not divide, or leaves the experts nothing."""
    if width is not None:
        return width, shared * (width if shared_width is None else shared_width)
    number = Fraction(repr(active))  # the decimal as the user wrote it
    if shared and shared_width is None:
        each = Fraction(model.hidden // (number + shared))
        together = int(model.hidden - number * each)
    else:
        together = shared * (shared_width or 0)
        each = (model.hidden - together) / number
    if each.denominator != 1 or each < 1:
        also = f" and {shared} shared" if shared else ""
        wide = "" if shared_width is None else f" of width {shared_width}"
        raise UserError(
            f"mlp_width {model.hidden} can't be shared by {active:g} active{also} experts{wide}; "
            "set expert_width, or an mlp_width that divides"
        )
    return int(each), together


class ExpertBank(nn.Module):
    """``experts`` MLPs of hidden width ``width``, with the activation of the dense MLP."""

    def __init__(self, model: ModelConfig, layer: int, *, experts: int, width: int) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.experts = experts
        self.width = width
        self.up = nn.Parameter(torch.empty(experts, up_columns(model, width), model.width))
        self.down = nn.Parameter(torch.empty(experts, model.width, width))

    def initialise(self, seed: int) -> None:
        normal_(self.up, seed, f"layers.{self.layer}.experts.up")
        normal_(
            self.down, seed, f"layers.{self.layer}.experts.down", scale=residual_scale(self.model.layers)
        )

    def forward(self, rows_ND: Tensor, counts: Counts) -> Tensor:
        """The experts' MLPs on rows sorted by expert, (N, D). ``counts[e]`` rows belong to expert e; a
        tensor stays on its device. Rows beyond the sum of ``counts`` belong to no expert and come out as
        0. Gradients of the rows have their dtype, not that of the matmuls."""
        rows_ND = rows_ND.to(matmul_dtype(rows_ND))
        with component("experts", self.layer):
            return expert_bank(rows_ND, self.up, self.down, counts, self.model.mlp)

    def grouped(self, x_D: Tensor) -> bool:
        """Return True if counts of rows like ``x_D`` should stay a tensor."""
        return (x_D.is_cuda or torch.compiler.is_compiling()) and self.fits_grouped_mm()

    def fits_grouped_mm(self) -> bool:
        """Return True if counts can stay a tensor, so that the host does not wait for them."""
        return mode() == "fast" and fast.fits_grouped_mm(self.up, self.down, matmul_dtype(self.up))

    def ledger(self, workload: Workload, rows: int) -> Ledger:
        """Return the closed form for ``rows`` assignments, however they are balanced."""
        later = workload.after(self.up.requires_grad)
        return weight_ledger(workload, self.layer, "experts", self.up, rows) + weight_ledger(
            later, self.layer, "experts", self.down, rows
        )

    def parameters_of(self, experts: float) -> int:
        """Return the number of parameters of ``experts`` experts."""
        return int(experts * (self.up[0].numel() + self.down[0].numel()))


def dispatched(
    bank: ExpertBank, x_SD: Tensor, gates_SE: Tensor, chosen_SE: Tensor, counts: Sequence[int] | int
) -> Tensor:
    """Return each token's sum over its chosen experts, any number of them, weighted by their gates, in
    the shape of ``x_SD``, which may also be (B, T, D). ``counts``: tokens per expert, or the number that
    every expert takes, so that the host does not wait."""
    flat_SD = x_SD.flatten(0, -2)
    tokens, experts = chosen_SE.shape
    loads: Counts
    if isinstance(counts, int):  # expert by expert, its tokens in order
        index_EK = pack_tokens(chosen_SE.T, counts, full=True)
        first_E1 = tokens * torch.arange(experts, device=index_EK.device)[:, None]
        chosen_N = (index_EK + first_E1).flatten()
        on_device = bank.grouped(flat_SD)
        loads = first_E1.new_full((experts,), counts) if on_device else [counts] * experts
    else:
        chosen_N = nonzero_indices(chosen_SE.T, sum(counts))
        loads = counts
    rows_N = chosen_N % tokens
    gates_N = gates_SE.T.reshape(-1).index_select(0, chosen_N)
    y_ND = bank(flat_SD.index_select(0, rows_N), loads)
    out_SD = from_experts(y_ND, gates_N, rows_N, tokens)
    return out_SD.to(x_SD.dtype).view_as(x_SD)
