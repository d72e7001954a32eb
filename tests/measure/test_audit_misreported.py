"""An impossible trace is reported in a sentence that names the layer.

B sequences, T tokens, D model width.
"""

from typing import Any

import mutants
import pytest
from mutants import Depth, Right
from torch import Tensor

from modbench.measure.audit import findings
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)

SENTENCES: dict[str, tuple[Any, str]] = {
    "one of each sequence": (
        lambda trace, at: trace.show(1, "selected", at[:, :1]),
        "layer 1 shows selected (3, 1) bool; it must be (3, 63) bool (topk)",
    ),
    "weights": (
        lambda trace, at: trace.show(1, "selected", at.double()),
        "layer 1 shows selected (3, 63) float64; it must be (3, 63) bool (topk)",
    ),
}


@pytest.mark.parametrize("told", SENTENCES)
def test_an_impossible_trace_is_named(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tell, sentence = SENTENCES[told]

    class Case(Right):
        def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
            y_BTD = super().forward(x_BTD, context)
            if context.cache is None and x_BTD.shape[:2] == (3, 63):
                tell(context.trace, context.trace.tensors[1, "selected"])
            return y_BTD

    monkeypatch.setitem(mutants.MUTANTS, "case", Case)
    (finding,) = findings(build_model(SHAPE, Depth(bug="case"), seed=4), only={5})
    assert (finding.failed, finding.figure) == (True, sentence)
