"""KV cache: the keys and values of each layer, with a length per sequence.

A depth-routed layer caches only the tokens it processed, so layers differ in length.

B sequences, T new tokens, C cached and new tokens, K key/value heads, P width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.errors import UserError


@dataclass
class LayerCache:
    """Keys and values of a layer, allocated ahead, and the number of cached tokens per sequence."""

    k_BKCP: Tensor
    v_BKCP: Tensor
    lengths: list[int]


#: A state of a cache that `Cache.rewind` returns to: tokens read, and those cached by layer.
Mark = tuple[list[int], dict[int, list[int]]]


class Cache:
    """The keys and values of ``sequences`` sequences; ``read`` counts the tokens read of each."""

    def __init__(self, sequences: int) -> None:
        if sequences < 1:
            raise UserError(f"a cache needs 1 or more sequences, not {sequences}")
        self.sequences = sequences
        self.read = [0] * sequences
        self._layers: dict[int, LayerCache] = {}

    def lengths(self, layer: int, rows: Sequence[int] | None = None) -> list[int]:
        """Return the tokens cached in ``layer`` for each sequence, or for those of ``rows``."""
        cached = self._layers.get(layer)
        lengths = [0] * self.sequences if cached is None else cached.lengths
        return list(lengths) if rows is None else [lengths[row] for row in rows]

    @property
    def bytes(self) -> int:
        """Bytes of the keys and values of all cached tokens, without memory allocated ahead."""
        total = 0
        for cached in self._layers.values():
            stored = (cached.k_BKCP, cached.v_BKCP)
            each = sum(t.shape[1] * t.shape[3] * t.element_size() for t in stored)
            total += sum(cached.lengths) * each
        return total

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Return the positions of the next ``tokens`` tokens of each sequence, (B, T)."""
        first = self.read[0]
        if min(self.read) == max(self.read):  # no copy from the host, which would wait for a GPU
            return torch.arange(first, first + tokens, device=device).expand(self.sequences, tokens)
        first_B1 = torch.tensor(self.read, device=device)[:, None]
        return first_B1 + torch.arange(tokens, device=device)

    def extend(
        self,
        layer: int,
        k_BKTP: Tensor,
        v_BKTP: Tensor,
        lengths: Sequence[int],
        rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Append the first ``lengths[i]`` new tokens of each sequence (of the sequences ``rows``).
        Return keys and values of all cached tokens up to the longest sequence, (B, K, C, P) each."""
        rows = range(self.sequences) if rows is None else rows
        past = self.lengths(layer, rows)
        ends = [p + n for p, n in zip(past, lengths, strict=True)]
        cached = self._with_room(layer, max(ends), k_BKTP, v_BKTP)
        stored, new = (cached.k_BKCP, cached.v_BKCP), (k_BKTP, v_BKTP)
        if len(rows) == self.sequences and min(past) == max(past) and min(lengths) == k_BKTP.shape[2]:
            for all_BKCP, new_BKTP in zip(stored, new, strict=True):
                all_BKCP[:, :, past[0] : ends[0]] = new_BKTP
        else:
            i_N, place_N, row_N, end_N = _places(rows, past, lengths).to(k_BKTP.device)
            for all_BKCP, new_BKTP in zip(stored, new, strict=True):
                new_NKP = new_BKTP.transpose(1, 2)[i_N, place_N]
                all_BKCP.transpose(1, 2)[row_N, end_N] = new_NKP
        for row, end in zip(rows, ends, strict=True):
            cached.lengths[row] = end
        if len(rows) < self.sequences:
            rows_R = torch.tensor(list(rows), device=k_BKTP.device)
            stored = stored[0].index_select(0, rows_R), stored[1].index_select(0, rows_R)
        k_BKCP, v_BKCP = (all_BKCP[:, :, : max(ends)] for all_BKCP in stored)
        return k_BKCP, v_BKCP

    def advance(self, lengths: Sequence[int]) -> None:
        """Record that ``lengths[i]`` more tokens of sequence i were read by all layers."""
        self.read = [read + n for read, n in zip(self.read, lengths, strict=True)]

    def select(self, rows: Sequence[int], room: int = 0) -> "Cache":
        """Return a cache of copies of the sequences ``rows``, in that order, with ``room`` for further
        tokens; a row may repeat, so that several continuations follow one prompt."""
        chosen = Cache(len(rows))
        chosen.read = [self.read[row] for row in rows]
        for layer, cached in self._layers.items():
            lengths = [cached.lengths[row] for row in rows]
            rows_R = torch.tensor(list(rows), device=cached.k_BKCP.device)
            k_RKCP, v_RKCP = (
                F.pad(stored[:, :, : max(lengths)].index_select(0, rows_R), (0, 0, 0, room))
                for stored in (cached.k_BKCP, cached.v_BKCP)
            )
            chosen._layers[layer] = LayerCache(k_RKCP, v_RKCP, lengths)
        return chosen

    def mark(self) -> Mark:
        """Return the current state for `rewind`."""
        return self.read, {layer: list(cached.lengths) for layer, cached in self._layers.items()}

    def rewind(self, mark: Mark) -> None:
        """Drop the tokens read since ``mark``. Nothing is copied; later tokens overwrite them."""
        self.read, lengths = mark
        for layer, cached in self._layers.items():
            cached.lengths = list(lengths.get(layer, [0] * self.sequences))

    def _with_room(self, layer: int, needed: int, k_BKTP: Tensor, v_BKTP: Tensor) -> LayerCache:
        """Return the layer's storage with room for ``needed`` tokens. It doubles when full, so that
        decoding copies each token a constant number of times."""
        cached = self._layers.get(layer)
        room = 0 if cached is None else cached.k_BKCP.shape[2]
        if cached is not None and room >= needed:
            return cached
        # Zeros: attention masks the positions beyond a sequence's end, but they must be finite.
        k_BKCP, v_BKCP = (
            new_BKTP.new_zeros(
                self.sequences, new_BKTP.shape[1], max(needed, 2 * room), new_BKTP.shape[3]
            )
            for new_BKTP in (k_BKTP, v_BKTP)  # values may have another width than keys
        )
        larger = LayerCache(k_BKCP, v_BKCP, [0] * self.sequences)
        if cached is not None:
            larger.k_BKCP[:, :, :room], larger.v_BKCP[:, :, :room] = cached.k_BKCP, cached.v_BKCP
            larger.lengths = cached.lengths
        self._layers[layer] = larger
        return larger


def _places(rows: Sequence[int], past: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Return for each of N new tokens the index of its sequence in ``rows`` and its place among the new
    ones, and its row and place in the cache, (4, N)."""
    rows_R, past_R, lengths_R = torch.tensor([list(rows), list(past), list(lengths)])
    new_RT = torch.arange(max(lengths)) < lengths_R[:, None]
    i_N, place_N = new_RT.nonzero(as_tuple=True)
    return torch.stack([i_N, place_N, rows_R[i_N], past_R[i_N] + place_N])
