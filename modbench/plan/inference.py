"""Memory of a prefill, from shapes.

B sequences, T tokens.
"""

from dataclasses import dataclass

import torch

from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.plan.activations import Kernels, default_dtype, fake_tensors
from modbench.plan.memory_trace import Live
from modbench.routing.build import RoutedDecoder


@dataclass(frozen=True, kw_only=True)
class InferenceMemory:
    """Bytes at the peak of a prefill: weights, KV cache, temporary tensors."""

    parameters: int
    cache: int
    working: int

    @property
    def total(self) -> int:
        return self.parameters + self.cache + self.working


def inference_memory(
    decoder: RoutedDecoder, sequences: int, length: int, *, bfloat16: bool, kernels: Kernels = "gpu"
) -> InferenceMemory:
    """The prefill of ``sequences`` prompts of ``length`` tokens, in bfloat16 or float32, with nominal
    routing.

    Raises:
        UserError: the router's layers need values.
    """
    with fake_tensors(decoder.router.name, kernels), torch.no_grad():
        with default_dtype("bfloat16" if bfloat16 else "float32"):
            model = RoutedDecoder(decoder.config, decoder.router).eval()
        weights = list(model.parameters())
        tokens_BT = torch.zeros(sequences, length, dtype=torch.long)
        live, cache = Live(weights, [tokens_BT]), Cache(sequences)
        with live:
            model(tokens_BT, Context(selection="causal", cache=cache, logits="last"))
        kept = cache.bytes
    return InferenceMemory(
        parameters=sum(weight.numel() * weight.element_size() for weight in weights),
        cache=kept,
        working=live.peak - kept,
    )
