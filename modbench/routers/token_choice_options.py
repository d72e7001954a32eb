"""Options of the schemes in which tokens choose experts."""

from dataclasses import dataclass
from typing import Any, Literal

from modbench.errors import UserError
from modbench.routing.option_checks import check_types, reject_unused
from modbench.routing.router import Router


@dataclass(frozen=True, kw_only=True)
class TokenChoiceOptions(Router):
    """The options of every scheme in which tokens choose experts."""

    experts: int = 8
    top_k: int = 2  #: experts per token
    expert_width: int | None = None  #: None: active experts are together as wide as the dense MLP
    affinity: Literal["softmax", "sigmoid"] = "softmax"  #: scores from logits
    renormalise: bool = True  #: gates of the chosen experts sum to 1
    scaling: float = 1.0  #: all gates are multiplied by it
    groups: int = 1  #: number of equal groups of experts
    top_groups: int = 1  #: groups that a token may choose experts of
    group_best: int | None = None  #: experts that a group is scored by; None: ceil(top_k / top_groups)
    shared_experts: int = 0  #: further experts, which every token goes to
    shared_width: int | None = None  #: of each; None: as wide as the others
    shared_gate: bool = False  #: what they give is multiplied by sigmoid(w^T x), as in Qwen's models
    capacity_factor: float | None = None  #: room in an expert, in training, over an even load; None: any
    balance: float = 0.01  #: weight of the balance loss
    balance_scope: Literal["batch", "sequence"] = "batch"  #: tokens whose load is to be even
    bias_step: float = 0.0  #: step of a bias that evens the load, seen by the choice alone; 0: none
    z_loss: float = 0.0  #: weight of the mean squared log-sum-exp of the router's logits

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("experts", "groups", "top_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 1 <= self.top_k <= self.experts:
            raise UserError(
                f"top_k is {self.top_k} of {self.experts} experts; it must lie between 1 and experts"
            )
        if self.top_k == 1 and self.renormalise:
            raise UserError(
                "top_k 1 with renormalise true makes every gate 1 and leaves the router without "
                "a gradient; set renormalise = false"
            )
        for name in ("expert_width", "shared_width"):
            width = getattr(self, name)
            if width is not None and width < 1:
                raise UserError(f"{name} is {width}; it must be 1 or more")
        for name in ("balance", "z_loss", "bias_step", "shared_experts"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.bias_step > 1:
            raise UserError(
                f"bias_step is {self.bias_step:g}; it must be 1 or less, which is as far as scores lie "
                "apart"
            )
        if self.scaling <= 0:
            raise UserError(f"scaling is {self.scaling:g}; it must be above 0")
        if self.capacity_factor is not None and self.capacity_factor < 1:
            raise UserError(
                f"capacity_factor is {self.capacity_factor:g}; it must be 1 or more, as an even load "
                "needs; leave it out to drop nothing"
            )
        self._check_groups()
        self._reject_unused()

    def options(self) -> dict[str, Any]:
        """All options but a ``group_best`` that is what None stands for: the layer is the same, and so
        is a record's key."""
        options = super().options()
        best, groups = self.group_best, self.top_groups
        if best is None or (best - 1) * groups < self.top_k <= best * groups:
            del options["group_best"]
        return options

    def _check_groups(self) -> None:
        if self.experts % self.groups:
            raise UserError(f"groups is {self.groups} of {self.experts} experts; it must divide experts")
        if self.top_groups > self.groups:
            raise UserError(f"top_groups is {self.top_groups} of {self.groups} groups; choose fewer")
        room = self.experts // self.groups * self.top_groups
        if self.top_k > room:
            raise UserError(
                f"top_k is {self.top_k} and the {self.top_groups} groups that a token may choose have "
                f"{room} experts; raise top_groups"
            )
        if self.group_best is None:
            return
        size = self.experts // self.groups
        if not 1 <= self.group_best <= size:
            raise UserError(
                f"group_best is {self.group_best} and a group has {size} experts; it must lie between 1 "
                "and that"
            )

    def _reject_unused(self) -> None:
        choices = self.experts + self._no_ops()
        takes_all = self.top_k == choices
        reject_unused(
            self,
            ("shared_width", not self.shared_experts, "shared_experts"),
            ("shared_gate", not self.shared_experts, "shared_experts"),
            ("z_loss", self.affinity == "sigmoid", "affinity"),
            ("balance_scope", not self.balance, "balance"),
            ("group_best", self.groups == 1, "groups"),
            ("groups", self.top_groups == self.groups, "top_groups"),
            ("groups", self.groups == self.experts, "experts"),
            ("bias_step", takes_all, "top_k"),
            ("balance", takes_all and self.balance > 0, "top_k"),
            ("balance_scope", takes_all, "top_k"),
            ("capacity_factor", (self.capacity_factor or 0) * self.top_k >= choices, "top_k"),
        )

    def _no_ops(self) -> int:
        """Return the number of no-op experts that a token may choose."""
        return 0
