"""The feed-forward part of a block: a dense MLP, or what a router puts in its place.

B sequences, T tokens, D model width, F hidden width.
"""

from torch import Tensor, nn

from modbench.kernels.expert_bank.plain import activation
from modbench.ledger import Ledger, Workload, component
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_, residual_scale
from modbench.model.layer import Layer, weight_ledger, with_upstream_grad


class FeedForward(Layer):
    """The part of a block that follows attention: a dense MLP or experts. ``forward`` returns the update
    of the residual stream, (B, T, D), from the normalised stream."""

    mixes = False


class MLP(FeedForward):
    """SwiGLU (Shazeer 2020, equation 6): down(silu(gate x) * up x), gate and up in one matmul; or GELU:
    down(gelu(up x))."""

    def __init__(self, model: ModelConfig, layer: int) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.up = nn.Linear(model.width, up_columns(model, model.hidden), bias=False)
        self.down = nn.Linear(model.hidden, model.width, bias=False)

    def initialise(self, seed: int) -> None:
        name = f"layers.{self.layer}.mlp"
        scale = residual_scale(self.model.layers)
        normal_(self.up.weight, seed, f"{name}.up")
        normal_(self.down.weight, seed, f"{name}.down", scale=scale)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        with component("mlp", self.layer):
            return self.down(activation(self.up(x_BTD), self.model.mlp))  # type: ignore[no-any-return]

    def ledger(self, workload: Workload) -> Ledger:
        return weight_ledger(
            workload, self.layer, "mlp", self.up.weight, workload.slots
        ) + weight_ledger(
            with_upstream_grad(workload, self.up), self.layer, "mlp", self.down.weight, workload.slots
        )


def up_columns(model: ModelConfig, hidden: int) -> int:
    """Return the columns of the matmul into a hidden layer of width ``hidden``: twice as many for
    SwiGLU, which needs gate and up."""
    return 2 * hidden if model.mlp == "swiglu" else hidden
