"""Integrated MoDE (Raposo et al. 2024, section 4.3): all tokens go through attention, and some of the
experts are no-ops, so that a token can skip the MLP. One router decides which tokens skip and which
experts process the others (figure 7, right). As in
`modbench.routers.token_choice`, y = sum_i g_i E_i(x), with E_i(x) = 0 for a no-op expert.

Nominal FLOPs are those of a balanced router, experts / (experts + no_op_experts) of all assignments,
rounded down; realised ones are counted.

The paper has no equations for it. What it leaves open: tokens choose experts, which is causal; by
default there are as many no-op experts as others; a no-op expert has its own router row and score, and
its gate is renormalised with the others, so choosing it also lowers the other gates; the balance loss
and the bias count it like any expert, which steers how many tokens skip; a capacity factor does not
limit it. All blocks have experts. The differences of token choice from its papers apply here, too.
"""

from dataclasses import dataclass
from typing import ClassVar

from modbench.errors import UserError
from modbench.routers.token_choice import TokenChoice
from modbench.routing.registry import register_router
from modbench.routing.router import Presets
from modbench.typed import Count


@register_router("mode_integrated")
@dataclass(frozen=True, kw_only=True)
class IntegratedMoDE(TokenChoice):
    """Token choice among real and no-op experts."""

    presets: ClassVar[Presets] = {"one_no_op": {"no_op_experts": 1}}

    no_op_experts: Count = 8  #: number of experts that compute nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups > 1:
            raise UserError(
                f"groups is {self.groups} with no_op_experts {self.no_op_experts}, which stand in no "
                "group; set groups = 1"
            )

    def no_ops(self) -> int:
        return self.no_op_experts
