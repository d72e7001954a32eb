"""Options of the schemes in which tokens are processed by some of several experts."""

from dataclasses import dataclass

from modbench.errors import UserError
from modbench.routing.option_checks import check_at_least, check_types, reject_unused
from modbench.routing.router import Router


@dataclass(frozen=True, kw_only=True)
class ExpertOptions(Router):
    """The options that all schemes of experts share. A scheme hides one by declaring it again as
    ``field(init=False, default=...)``."""

    experts: int = 8
    top_k: int = 2  #: experts per token
    expert_width: int | None = None  #: None: active experts are together as wide as the dense MLP
    shared_experts: int = 0  #: further experts, which process every token
    shared_width: int | None = None  #: of each; None: as wide as the others
    shared_gate: bool = False  #: their output is multiplied by sigmoid(w^T x), as in Qwen's models
    capacity_factor: float | None = None  #: room in an expert, in training, over an even load; None: any
    balance: float = 0.01  #: weight of the balance loss
    z_loss: float = 0.0  #: weight of the mean squared log-sum-exp of the router's logits

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(1, self, "experts", "expert_width", "shared_width")
        check_at_least(0, self, "shared_experts", "balance", "z_loss")
        if not 1 <= self.top_k <= self.experts:
            raise UserError(
                f"top_k is {self.top_k} of {self.experts} experts; it must lie between 1 and experts"
            )
        if self.capacity_factor is not None and self.capacity_factor < 1:
            raise UserError(
                f"capacity_factor is {self.capacity_factor:g}; it must be 1 or more, as an even load "
                "needs; leave it out to drop nothing"
            )
        reject_unused(
            self,
            ("shared_width", not self.shared_experts, "shared_experts"),
            ("shared_gate", not self.shared_experts, "shared_experts"),
        )

    def no_ops(self) -> int:
        """Return the number of no-op experts: their ids follow those of the others, and their
        assignments are not computed. Only for schemes that override `choose`."""
        return 0
