"""Training batches: a pure function of seed and step, the same for every scheme.

B sequences, T tokens, N tokens of text.
"""

import numpy as np
import torch
from torch import Tensor

from modbench.data.shards import Tokens
from modbench.errors import UserError, several


class Batches:
    """Windows of T + 1 tokens; each epoch has its own order and its own offset. Raise a `UserError` if
    the text is too short for one window at every offset."""

    def __init__(self, text_N: Tokens, *, sequence: int, batch: int, seed: int) -> None:
        self.text_N = text_N
        self.sequence = sequence
        self.batch = batch
        self.seed = seed
        self.windows = (len(text_N) - sequence - 1) // sequence
        if self.windows < 1:
            raise UserError(
                f"the training text has {several(len(text_N), 'token')}; a sequence of {sequence} needs "
                f"{2 * sequence + 1} or more; give more text or a shorter sequence"
            )
        self._epoch = -1
        self._starts_W = np.zeros(0, dtype=np.int64)

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of step ``step`` (from 0), (B, T) each."""
        numbers = range(step * self.batch, (step + 1) * self.batch)
        rows = [self._window(number) for number in numbers]
        window_BT = torch.from_numpy(np.stack(rows).astype(np.int64))
        return window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()

    def _window(self, number: int) -> np.ndarray:
        epoch, window = divmod(number, self.windows)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            offset = generator.integers(self.sequence)
            self._starts_W = generator.permutation(self.windows) * self.sequence + offset
            self._epoch = epoch
        start = self._starts_W[window]
        return self.text_N[start : start + self.sequence + 1]
