"""Validation loss, and the FLOPs of the causal rule on held-out text.

B sequences, T tokens, N tokens of text, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from modbench.data.shards import Tokens
from modbench.errors import UserError, several
from modbench.ledger import Workload
from modbench.model.context import Context, Selection
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace

#: Sequences per forward pass: more take more memory. `modbench.sweep.steps.audit` audits this batch.
SCORING_BATCH = 16
_COUNTED = 2**22  # tokens counted at a time


@dataclass(frozen=True, kw_only=True)
class HeldoutLoss:
    """Loss on held-out windows, and realised FLOPs per token (convention ``model``): of the selected
    tokens, and of all computed slots."""

    nats_per_token: float
    bits_per_byte: float
    realised_flops_per_token: float
    dispatched_flops_per_token: float
    tokens: int


def heldout_windows(heldout_N: Tokens, *, sequence: int, tokens: int) -> np.ndarray:
    """Windows (W, T + 1), W = tokens / T rounded up, spread evenly over the held-out text without
    overlap; fewer if the text is shorter. Raises UserError: the text is shorter than one window."""
    starts = window_starts(heldout_N, sequence=sequence, tokens=tokens)
    return np.stack([heldout_N[start : start + sequence + 1] for start in starts]).astype(np.int64)


def window_starts(heldout_N: Tokens, *, sequence: int, tokens: int) -> list[int]:
    """The places at which the `heldout_windows` begin. Raises UserError: see there."""
    most = (len(heldout_N) - 1) // sequence
    if most < 1:
        raise UserError(
            f"the held-out text has {several(len(heldout_N), 'token')}, too few for one sequence of "
            f"{sequence}; give more text or a shorter sequence"
        )
    count = min(most, math.ceil(tokens / sequence))
    return [number * most // count * sequence for number in range(count)]


@torch.no_grad()
def heldout_loss(
    model: LanguageModel,
    windows_WT: np.ndarray,
    token_bytes_V: np.ndarray,
    *,
    selection: Selection,
    batch: int = SCORING_BATCH,
    watch: Callable[[torch.Tensor, Trace], None] | None = None,
) -> HeldoutLoss:
    """Cross-entropy over ``windows_WT`` in float32, each window from an empty context. ``watch`` gets
    the tokens (B, T) and the trace of each forward pass."""
    on = next(model.parameters()).device
    model.eval()
    nats = 0.0
    tokens = 0
    text_bytes = 0
    realised = 0
    dispatched = 0
    for start in range(0, len(windows_WT), batch):
        window_BT = torch.from_numpy(windows_WT[start : start + batch]).to(on)
        # Copies, since layers may write to the tokens they get.
        inputs_BT, targets_BT = window_BT[:, :-1].clone(), window_BT[:, 1:]
        context = Context(selection=selection)
        losses_BT = model.losses(inputs_BT, targets_BT, context)
        nats += losses_BT.double().sum().item()
        tokens += targets_BT.numel()
        text_bytes += int(token_bytes_V[targets_BT.cpu().numpy()].sum())
        if watch is not None:
            watch(inputs_BT, context.trace)
        lengths = (inputs_BT.shape[1],) * inputs_BT.shape[0]
        counts = context.trace.counts
        realised += model.ledger(Workload(lengths=lengths, counts=counts)).total()
        dispatched += model.ledger(Workload(lengths=lengths, counts=counts, padding=True)).total()
    return HeldoutLoss(
        nats_per_token=nats / tokens,
        bits_per_byte=nats / math.log(2) / text_bytes,
        realised_flops_per_token=realised / tokens,
        dispatched_flops_per_token=dispatched / tokens,
        tokens=tokens,
    )


def unigram_loss(train_N: Tokens, windows_WT: np.ndarray, vocabulary: int) -> float:
    """Cross-entropy in nats per token of the held-out windows under the training text's token
    frequencies (one added to each count), which is what a model without context can reach."""
    counts_V = np.ones(vocabulary, dtype=np.int64)
    for start in range(0, len(train_N), _COUNTED):  # counting takes 8 bytes per token
        counts_V += np.bincount(train_N[start : start + _COUNTED], minlength=vocabulary)
    log_V = np.log(counts_V / counts_V.sum())
    return float(-log_V[windows_WT[:, 1:]].mean())
