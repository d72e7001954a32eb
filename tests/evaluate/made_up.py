"""Text that cloze items can be made of: made-up words, all about as frequent. And models by hand.

B sequences, T tokens, V vocabulary, R requested rows of logits.
"""

import random

import torch
from torch import Tensor, nn

from modbench.model.context import Context


class ByHand(nn.Module):
    """A model that is called as ours are, without a closed form of FLOPs."""

    ledger = None

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0))

    def logits_at(self, tokens_BT: Tensor, context: Context, rows_R: Tensor, places_R: Tensor) -> Tensor:
        return self(tokens_BT, context)[rows_R, places_R]


def made_up_text(sentences: int, seed: int = 0) -> str:
    """Return ``sentences`` sentences; another ``seed`` gives others with the same words."""
    rng = random.Random("words")
    words = sorted({"".join(rng.choice("abcdefghij") for _ in range(6)) for _ in range(120)})
    rng = random.Random(seed)
    lines = []
    for _ in range(sentences):
        first, *rest = rng.choices(words, k=9)
        lines.append(f"{first.capitalize()} {' '.join(rest)}.")
    return "\n".join(lines)
