"""fvcore as an outside witness of a forward pass: another library's counter, from a trace of the model
and not from the dispatcher. Needs fvcore (extra ``dev``).

By itself it sees no SDPA and no grouped matmul, and it counts a LayerNorm as matmuls; it counts
multiply-accumulates. Here it has the handles it lacks, loses the one too many, and is doubled.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from modbench.model.context import Context, Selection


class _Traced(nn.Module):
    """The model as fvcore wants it: tensors in, tensors out."""

    def __init__(self, model: nn.Module, selection: Selection) -> None:
        super().__init__()
        self.model, self.selection = model, selection

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, ...]:
        context = Context(selection=self.selection)
        logits_BTV = self.model(tokens_BT, context)
        # A trace drops what nothing comes of, such as a predictor that only a loss listens to.
        return (logits_BTV, *context.trace.losses.values())


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _grouped(inputs: list[Any], outputs: list[Any]) -> int:
    left, right = _shape(inputs[0]), _shape(inputs[1])
    return math.prod(left) * right[-1]


def fvcore_flops(
    model: nn.Module, tokens_BT: Tensor, *, selection: Selection = "topk"
) -> tuple[int, dict[str, int]]:
    """FLOPs of ``model(tokens_BT, ...)`` by fvcore, attention as the full square; and the ops that it
    left out, with how often each ran, for the caller to see that no matmul is among them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(_Traced(model, selection), (tokens_BT,))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.set_op_handle("aten::_grouped_mm", _grouped)
    # Setting it to None would not remove it.
    analysis._op_handles.pop("aten::layer_norm", None)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        total = 2 * int(analysis.total())
        left_out = dict(analysis.unsupported_ops())
    return total, left_out
