"""Size of the KV cache on held-out text.

B sequences, T tokens, W windows.
"""

import numpy as np
import torch

from modbench.measure.loss import SCORING_BATCH
from modbench.model.generate import dense_cache_bytes, prefill
from modbench.routing.build import RoutedDecoder


def kv_cache_measures(
    model: RoutedDecoder, windows_WT: np.ndarray, *, batch: int = SCORING_BATCH
) -> dict[str, float]:
    """Process ``windows_WT`` under the causal rule, each with an empty cache: cached bytes per token,
    without preallocated room, and their share of a dense cache. A token that skips a layer leaves no
    key there."""
    on = next(model.parameters()).device
    model.eval()
    kept, tokens = 0, 0
    for start in range(0, len(windows_WT), batch):
        tokens_BT = torch.from_numpy(windows_WT[start : start + batch]).to(on)[:, :-1]
        _, cache = prefill(model, tokens_BT)
        kept += cache.bytes
        tokens += tokens_BT.numel()
    return {
        "kv_cache_bytes_per_token": kept / tokens,
        "kv_cache_share": kept / dense_cache_bytes(model, tokens),
    }
