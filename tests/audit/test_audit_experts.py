"""The audit of schemes of experts.

N tokens, E experts.
"""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import Tensor

from modbench import ExpertRouter
from modbench.audit import findings
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.tokens import Tokens

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


@pytest.mark.parametrize("declared", [False, True])
def test_a_number_of_experts_far_from_top_k_has_to_be_declared(declared: bool) -> None:
    @dataclass(frozen=True, kw_only=True)
    class All(ExpertRouter):
        name: ClassVar[str] = "all"

        def assign(self, logits_NE: Tensor, tokens: Tokens) -> Tensor:
            return logits_NE.softmax(dim=-1)

    @dataclass(frozen=True, kw_only=True)
    class Declared(All):
        expert_width: int | None = 16

        def nominal_experts_per_token(self) -> float:
            return self.experts

    model = build_model(SHAPE, Declared() if declared else All())
    (capacity,) = findings(model, shapes=((2, 17),), only={4})
    assert capacity.failed == (not declared)
    assert (
        declared or "8 experts per token in training, and nominal is top_k, 2; define" in capacity.figure
    )
