"""Expert choice (Zhou et al. 2022) with a temperature in the scores' softmax (as in the dense-to-sparse
gate of Nie et al. 2021, arXiv 2112.14397)."""

from dataclasses import dataclass

from modbench import register_router
from modbench.errors import UserError
from modbench.routers.expert_choice import ExpertChoice


@register_router("tempered_expert_choice")
@dataclass(frozen=True, kw_only=True)
class TemperedExpertChoice(ExpertChoice):
    temperature: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise UserError(f"temperature is {self.temperature:g}; it must be above 0")

    def scores(self, logits_NE):
        return (logits_NE / self.temperature).softmax(dim=-1)
