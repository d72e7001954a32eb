"""The options of schemes whose blocks hold a bank of experts."""

from dataclasses import dataclass

from modbench.errors import UserError
from modbench.routing.router import Router, check_types, reject_unused
from modbench.typed import Count, Natural, NotNegative


@dataclass(frozen=True, kw_only=True)
class BankOptions(Router):
    """The options of a bank of experts."""

    experts: Count = 8  #: number of experts
    expert_width: Count | None = None  #: None: active experts are together as wide as the dense MLP

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class ExpertOptions(Router):
    """The options of schemes in which tokens choose experts."""

    experts: Count = 8  #: number of experts
    top_k: int = 2  #: experts per token
    expert_width: Count | None = None  #: None: active experts are together as wide as the dense MLP
    shared_experts: Natural = 0  #: additional experts that process every token
    shared_width: Count | None = None  #: width of each shared expert; None: as wide as the others
    shared_gate: bool = False  #: multiply shared experts' output by sigmoid(w^T x), as in Qwen's models
    #: most tokens of an expert in training, over an even load; None: no limit
    capacity_factor: float | None = None
    balance: NotNegative = 0.01  #: weight of the balance loss
    z_loss: NotNegative = 0.0  #: weight of the mean squared log-sum-exp of the router's logits

    def __post_init__(self) -> None:
        check_types(self)
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
