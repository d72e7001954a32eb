"""Context: what travels with one forward pass, such as the selection rule, padding and the KV cache.

B sequences, T tokens, D model width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.kv_cache import Cache
from modbench.model.trace import Trace

#: ``topk``: the training rule, which compares a token with later ones. ``causal``: a rule that looks at
#: no later token and may predict the next one.
Selection = Literal["topk", "causal"]
#: The tokens whose logits a pass returns.
Logits = Literal["all", "last"]
INTEGERS = (torch.int32, torch.int64)


@dataclass(kw_only=True)
class Context:
    """One forward pass.

    ``lengths_B``: number of real tokens of each sequence; the rest, on the right, is padding, which no
    router selects. None: no padding. ``positions_BT``: positions of the tokens; None: 0..T-1.
    ``tokens_BT``: token ids, set by the decoder; None where a layer runs by itself. ``cache``: the
    tokens follow those it holds; ``rows``: the sequences of the cache that they belong to, None for all;
    ``past``: number of tokens of each sequence that came earlier. ``logits``: of every token, or of each
    sequence's last real one. ``checkpoint``: keep only each layer's input for the backward pass and run
    its forward pass again; ``programs``: the compiled layers to run so. ``forced_balance``: route
    evenly, whatever the scores (`modbench.routing.force_balance`). ``first_row``: number of the pass's
    first sequence in its training step's batch, of which it is a part; None: it is the batch.
    ``replaced``: decisions to take in place of a layer's own under the causal rule, by its number and
    ``depth``, (B, T) bool, or ``experts``: (N, K) ids where tokens choose, else (N, E) bool.

    A layer that processes some of the tokens gets the inner context from
    `modbench.routing.gathered_tokens.GatheredTokens`, which carries all of this over.
    """

    selection: Selection = "topk"
    lengths_B: Tensor | None = None
    positions_BT: Tensor | None = None
    tokens_BT: Tensor | None = None
    trace: Trace = field(default_factory=Trace)
    cache: Cache | None = None
    rows: Sequence[int] | None = None
    past: Sequence[int] = ()
    logits: Logits = "all"
    checkpoint: bool = False
    programs: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    forced_balance: bool = False
    first_row: Tensor | None = None
    replaced: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)

    def check(self, tokens_BT: Tensor) -> None:
        """Check token ids (B, T) against this context. Raise a `UserError` for no tokens, or for lengths
        or a cache of another number of sequences."""
        if tokens_BT.dtype not in INTEGERS or tokens_BT.dim() != 2 or not all(map(int, tokens_BT.shape)):
            raise UserError(
                f"tokens are of shape {tuple(tokens_BT.shape)} and {tokens_BT.dtype}; they must be "
                "(B, T) int32 or int64, one token or more"
            )
        if self.cache is not None and self.cache.sequences != len(tokens_BT):
            raise UserError(
                f"a cache of {self.cache.sequences} sequences was given tokens of {len(tokens_BT)}; "
                "give as many"
            )
        # Only where values are at hand: the host would wait for a GPU, and meta tensors have none.
        if self.lengths_B is not None and type(self.lengths_B) is Tensor and self.lengths_B.is_cpu:
            self.lengths(tokens_BT)

    def lengths(self, x_BTD: Tensor) -> list[int]:
        """Return the number of real tokens of each sequence of ``x_BTD``. Raise a `UserError` if there
        is not one length per sequence, between 1 and T."""
        sequences, tokens = x_BTD.shape[:2]
        if self.lengths_B is None:
            return [tokens] * sequences
        known: list[int] | None = getattr(self.lengths_B, "on_host", None)
        lengths: list[int] = self.lengths_B.tolist() if known is None else known
        if len(lengths) != sequences or min(lengths) < 1 or max(lengths) > tokens:
            raise UserError(
                f"lengths_B is {lengths} for {sequences} sequences of {tokens} tokens; give each one "
                f"from 1 to {tokens}"
            )
        return lengths

    def before(self, x_BTD: Tensor) -> list[int]:
        """Return the number of earlier tokens of each sequence of ``x_BTD``."""
        return list(self.past) if self.past else [0] * len(x_BTD)

    def positions(self, x_BTD: Tensor) -> Tensor:
        """Return the positions (B, T) of the tokens of ``x_BTD``."""
        if self.positions_BT is not None:
            return self.positions_BT
        sequences, tokens = x_BTD.shape[:2]
        return torch.arange(tokens, device=x_BTD.device).expand(sequences, tokens)

    def real(self, x_BTD: Tensor) -> Tensor | None:
        """Return the tokens of ``x_BTD`` that are not padding, (B, T) bool; None: all of them."""
        if self.lengths_B is None:
            return None
        return torch.arange(x_BTD.shape[1], device=x_BTD.device) < self.lengths_B[:, None]


def host_lengths(lengths: Sequence[int], on: torch.device) -> Tensor:
    """Return ``lengths`` as the ``lengths_B`` of a context, on the device ``on``. The tensor carries
    them along: it has no values on the meta device, and the host would wait for a GPU's."""
    lengths_B = torch.tensor(lengths, device=on)
    lengths_B.on_host = list(lengths)  # type: ignore[attr-defined]
    return lengths_B
