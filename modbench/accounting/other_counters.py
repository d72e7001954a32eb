"""FLOPs of a model by other counters as they are out of the box: fvcore and PyTorch's own.

docs/counters.md compares them, and more, on cases of known cost. B sequences, T tokens.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modbench.accounting.count import count
from modbench.counting.restore_state import untouched
from modbench.hf import passes as hugging_face
from modbench.ledger import Phase
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder

FORWARD_ONLY = "n/a: forward only"


def other_counts(model: Any, inputs: tuple[int, int], phase: Phase, past: int) -> dict[str, int | str]:
    """Return the FLOPs that each counter reports for what `modbench.count` counts, or in a few words why
    it reports none.

    ``model``: a decoder of modbench, or the dict of a config.json.
    """

    def torchs() -> int:
        counter = FlopCounterMode(display=False)
        count(model, inputs, phase=phase, past=past, around=counter)
        return counter.get_total_flops()

    def fvcores() -> int:
        built = model if isinstance(model, nn.Module) else hugging_face.build(model, "meta")
        tokens_BT = torch.zeros(*inputs, dtype=torch.long, device=next(built.parameters()).device)
        fit = nullcontext() if built is model else hugging_face.fit_for_meta(built)
        with untouched(built, train=False), fit, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # It counts multiply-accumulates.
            return 2 * int(fvcore_analysis(Traced(built), (tokens_BT,)).total())

    other_phase = phase != "forward" or past > 0
    return {
        "fvcore": FORWARD_ONLY if other_phase else _or_reason(fvcores),
        "FlopCounterMode": _or_reason(torchs),
    }


def _or_reason(counter: Callable[[], int]) -> int | str:
    try:
        return counter()
    except Exception as error:  # whatever another library raises is shown in its column
        return f"failed: {type(error).__name__}"


class Traced(nn.Module):
    """A causal language model as fvcore traces it: tensors in, tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(self.model, RoutedDecoder):
            logits_BTV: Tensor = self.model(input_ids=tokens_BT, use_cache=False, return_dict=False)[0]
            return (logits_BTV,)
        context = Context()
        logits_BTV = self.model(tokens_BT, context)
        # A trace drops what nothing uses, such as a predictor that only a loss reads.
        return (logits_BTV, *context.trace.losses.values())


def fvcore_analysis(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Return fvcore's analysis of ``module(*inputs)``, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports torch.jit's deprecated parts
        from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none")
