"""Integrated MoDE (Raposo et al. 2024, section 4.3): attention for all; among the experts, some that do
nothing, so that a token may choose to pass by. One router says both who passes by and where the others
go (figure 7, right): y = sum_i g_i E_i(x) as in `modbench.routers.token_choice`, with E_i(x) = 0 for a
no-op expert, which costs nothing.

How many tokens choose it depends on the routing. Nominal is what a balanced router spends,
experts / (experts + no_op_experts) of all assignments, rounded down; realised is counted.

The paper gives the idea in a paragraph and a figure, and no equation. What it leaves open is read so:
each token chooses its experts, which is causal as it stands (the depth routing of its section 3 lets
top-k choose tokens); no-op experts are as many as the others by default; a no-op expert has a router row
and a score of its own, and its gate is renormalised with the others', so that choosing it also turns the
rest down; the balance loss and the bias count it as they do any expert, and so steer how many pass by;
with a capacity factor it takes every token. All blocks have experts. Where token choice reads its own
papers differently, so does this.
"""

from dataclasses import dataclass
from typing import ClassVar

from modbench.errors import UserError
from modbench.routers.token_choice import TokenChoice
from modbench.routing.registry import register_router
from modbench.routing.router import Presets


@register_router("mode_integrated")
@dataclass(frozen=True, kw_only=True)
class IntegratedMoDE(TokenChoice):
    """Token choice among real and no-op experts."""

    presets: ClassVar[Presets] = {"one_no_op": {"no_op_experts": 1}}

    no_op_experts: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.no_op_experts < 1:
            raise UserError(f"no_op_experts is {self.no_op_experts}; it must be 1 or more")
        if self.groups > 1:
            raise UserError(
                f"groups is {self.groups} with no_op_experts {self.no_op_experts}, which stand in no "
                "group; set groups = 1"
            )

    def no_ops(self) -> int:
        return self.no_op_experts
