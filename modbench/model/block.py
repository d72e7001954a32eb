"""The pre-norm block that every scheme wraps or changes: attention, then a feed-forward part.

B sequences, T tokens, D model width.
"""

from torch import Tensor, nn

from modbench.ledger import Counts, Ledger, Workload
from modbench.model.attention import Attention
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.counted import Place, checked_output
from modbench.model.layer import Layer, with_upstream_grad
from modbench.model.mlp import MLP, FeedForward


class Block(Layer):
    """A pre-norm block with RMSNorm (Zhang and Sennrich 2019, equation 4); ``feed_forward`` replaces its
    dense MLP."""

    def __init__(self, model: ModelConfig, layer: int, feed_forward: FeedForward | None = None) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(model.width, eps=model.norm_epsilon)
        self.attention = Attention(model, layer)
        self.feed_forward_norm = nn.RMSNorm(model.width, eps=model.norm_epsilon)
        self.feed_forward = feed_forward if feed_forward is not None else MLP(model, layer)
        self.feed_forward.place = Place(layer, model.width)

    @property
    def has_data_dependent_shapes(self) -> bool:  # type: ignore[override]
        return self.feed_forward.has_data_dependent_shapes

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), context)
        return x_BTD + self._fed(x_BTD, context)

    def delta(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Return the block's update of the residual stream, (B, T, D): ``forward(x) - x`` without the
        rounding of the subtraction."""
        attended_BTD = self.attention(self.attention_norm(x_BTD), context)
        middle_BTD = x_BTD + attended_BTD
        return attended_BTD + self._fed(middle_BTD, context)

    def _fed(self, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = self.feed_forward(self.feed_forward_norm(x_BTD), context)
        return checked_output(self.feed_forward, self.feed_forward.place, y_BTD, x_BTD)

    def ledger(self, workload: Workload) -> Ledger:
        workload = with_upstream_grad(workload, self.attention_norm)
        middle = with_upstream_grad(with_upstream_grad(workload, self.attention), self.feed_forward_norm)
        return self.attention.ledger(workload) + self.feed_forward.ledger(middle)

    def nominal_counts(self, workload: Workload) -> Counts:
        return self.feed_forward.nominal_counts(workload)

    def expected_counts(self, workload: Workload) -> Counts:
        return self.feed_forward.expected_counts(workload)
