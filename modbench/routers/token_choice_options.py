"""Options of the schemes in which tokens choose experts."""

from dataclasses import dataclass
from typing import Literal

from modbench.errors import UserError
from modbench.routing.expert_hooks import ExpertOptions
from modbench.routing.option_checks import reject_unused


@dataclass(frozen=True, kw_only=True)
class TokenChoiceOptions(ExpertOptions):
    """The options of every scheme in which tokens choose experts."""

    affinity: Literal["softmax", "sigmoid"] = "softmax"  #: scores from logits
    renormalise: bool = True  #: gates of the chosen experts sum to 1
    scaling: float = 1.0  #: all gates are multiplied by it
    groups: int = 1  #: number of equal groups of experts
    top_groups: int = 1  #: groups that a token may choose experts of
    balance_scope: Literal["batch", "sequence"] = "batch"  #: tokens whose load is to be even
    bias_step: float = 0.0  #: step of a bias that evens the load, seen by the choice alone; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("groups", "top_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.top_k == 1 and self.renormalise:
            raise UserError(
                "top_k 1 with renormalise true makes every gate 1 and leaves the router without "
                "a gradient; set renormalise = false"
            )
        if not 0 <= self.bias_step <= 1:  # scores lie in (0, 1)
            raise UserError(f"bias_step is {self.bias_step:g}; it must lie in [0, 1]")
        if self.scaling <= 0:
            raise UserError(f"scaling is {self.scaling:g}; it must be above 0")
        self._check_groups()
        self._reject_unused()

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

    def _reject_unused(self) -> None:
        choices = self.experts + self.no_ops()
        takes_all = self.top_k == choices
        reject_unused(
            self,
            ("z_loss", self.affinity == "sigmoid", "affinity"),
            ("balance_scope", not self.balance, "balance"),
            ("groups", self.top_groups == self.groups, "top_groups"),
            ("groups", self.groups == self.experts, "experts"),
            ("bias_step", takes_all, "top_k"),
            ("balance", takes_all and self.balance > 0, "top_k"),
            ("balance_scope", takes_all, "top_k"),
            ("capacity_factor", (self.capacity_factor or 0) * self.top_k >= choices, "top_k"),
        )
