"""What inference remembers: the keys and values of each layer, each sequence at a length of its own.

A depth-routed layer keeps the tokens that entered it and no others, so layers differ in length.

B sequences, T new tokens, C kept and new tokens, K key/value heads, P width of a head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from modbench.errors import UserError

if TYPE_CHECKING:
    from modbench.model.decode_graphs import DecodeGraphs

Made = TypeVar("Made")


@dataclass
class Kept:
    """Keys and values of a layer, with room for more, and how many tokens of each sequence they are."""

    k_BKCP: Tensor
    v_BKCP: Tensor
    lengths: list[int]


@dataclass(frozen=True)
class Mark:
    """How far a cache was filled."""

    read: list[int]
    lengths: dict[int, list[int]]


class Cache:
    """The keys and values of ``sequences`` sequences, and how many tokens of each were read. With
    ``graphs``, blocks replay what they do with one token of a sequence."""

    def __init__(self, sequences: int, graphs: "DecodeGraphs | None" = None) -> None:
        try:
            self.sequences = index(sequences)
        except TypeError:
            raise UserError(
                f"a cache of {sequences!r} sequences can't be; give a whole number"
            ) from None
        if self.sequences < 1:
            raise UserError(f"a cache of {sequences} sequences can't be; give 1 or more")
        self.graphs = graphs
        self.read = [0] * self.sequences
        self._served: Mapping[str, Any] | None = None
        self._layers: dict[int, Kept] = {}

    def serve(self, identity: Mapping[str, Any], sequences: int) -> None:
        """Bind the cache to the first model that fills it, or check that it is the same one.

        Raises:
            UserError: another model filled it, or it keeps another number of sequences.
        """
        if sequences != self.sequences:
            raise UserError(
                f"a cache of {self.sequences} sequences was given tokens of {sequences}; give as many"
            )
        if self._served is None:
            self._served = identity
        one, other = self._served, identity
        if one != other:
            name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
            raise UserError(
                f"the cache was filled by a model with {name} {one.get(name)!r} and given to one with "
                f"{name} {other.get(name)!r}; read the prompt with the model that goes on"
            )

    def lengths(self, layer: int, rows: Sequence[int] | None = None) -> list[int]:
        """Tokens kept in ``layer`` of each sequence, or of the sequences ``rows``."""
        kept = self._layers.get(layer)
        lengths = [0] * self.sequences if kept is None else kept.lengths
        return list(lengths) if rows is None else [lengths[row] for row in rows]

    @property
    def bytes(self) -> int:
        """Bytes of the keys and values of all kept tokens, without what is allocated ahead."""
        return sum(
            sum(kept.lengths) * (_row_bytes(kept.k_BKCP) + _row_bytes(kept.v_BKCP))
            for kept in self._layers.values()
        )

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Positions (B, T) of the next ``tokens`` tokens of each sequence."""
        first = self.read[0]
        if min(self.read) == max(self.read):  # a GPU would be waited for to be sent them
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
        *,
        whole: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Keep the first ``lengths[i]`` new tokens of each sequence (of the sequences ``rows``), and
        give the keys and values of all that are kept, to the longest: (B, K, C, P) each. C is rounded up
        to a multiple of ``whole``, as far as there is room; what lies there are numbers of no token."""
        rows = range(self.sequences) if rows is None else rows
        past = self.lengths(layer, rows)
        ends = [p + n for p, n in zip(past, lengths, strict=True)]
        kept = self._room(layer, max(ends), k_BKTP, v_BKTP)
        stored, new = (kept.k_BKCP, kept.v_BKCP), (k_BKTP, v_BKTP)
        everyone = len(rows) == self.sequences
        if everyone and min(past) == max(past) and min(lengths) == k_BKTP.shape[2]:
            for all_BKCP, new_BKTP in zip(stored, new, strict=True):
                all_BKCP[:, :, past[0] : ends[0]] = new_BKTP
        else:
            for i, (row, first, end) in enumerate(zip(rows, past, ends, strict=True)):
                for all_BKCP, new_BKTP in zip(stored, new, strict=True):
                    all_BKCP[row, :, first:end] = new_BKTP[i, :, : end - first]
        self._grown(kept, rows, ends)
        most = -(-max(ends) // whole) * whole
        k_BKCP, v_BKCP = (_of_rows(all_BKCP, rows)[:, :, :most] for all_BKCP in stored)
        return k_BKCP, v_BKCP

    def begin(
        self,
        layer: int,
        k_1KSP: Tensor,
        v_1KSP: Tensor,
        segments: Sequence[int],
        rows: Sequence[int] | None = None,
    ) -> None:
        """Keep the first tokens of sequences (of the sequences ``rows``) that lie in one row, so many
        ``segments[i]`` of each, one after another."""
        rows = range(self.sequences) if rows is None else rows
        kept = self._room(layer, max(segments), k_1KSP, v_1KSP)
        for all_BKCP, new_1KSP in ((kept.k_BKCP, k_1KSP), (kept.v_BKCP, v_1KSP)):
            for row, new_1KTP in zip(rows, new_1KSP.split(list(segments), dim=2), strict=True):
                all_BKCP[row, :, : new_1KTP.shape[2]] = new_1KTP[0]
        self._grown(kept, rows, segments)

    def one_more(
        self, layer: int, k_1K1P: Tensor, rows: Sequence[int] | None, write: Callable[[Kept], Made]
    ) -> Made:
        """What ``write`` gives, which writes the key and the value, like ``k_1K1P`` both, of one more
        token of each sequence (of the sequences ``rows``) behind what is kept."""
        rows = range(self.sequences) if rows is None else rows
        past = self.lengths(layer, rows)
        kept = self._room(layer, max(past) + 1, k_1K1P, k_1K1P)
        made = write(kept)
        self._grown(kept, rows, [length + 1 for length in past])
        return made

    def advance(self, lengths: Sequence[int]) -> None:
        """``lengths[i]`` more tokens of sequence i were read, in all layers."""
        self.read = [read + n for read, n in zip(self.read, lengths, strict=True)]

    def mark(self) -> "Mark":
        """The place to `rewind` to."""
        kept = {layer: list(kept.lengths) for layer, kept in self._layers.items()}
        return Mark(list(self.read), kept)

    def rewind(self, mark: "Mark") -> None:
        """Forget what was read since ``mark``. Nothing is copied: what follows is written over it."""
        self.read = list(mark.read)
        for layer, kept in self._layers.items():
            kept.lengths = list(mark.lengths.get(layer, [0] * self.sequences))

    def _grown(self, kept: Kept, rows: Sequence[int], lengths: Sequence[int]) -> None:
        for row, length in zip(rows, lengths, strict=True):
            kept.lengths[row] = length

    def _room(self, layer: int, needed: int, k_BKTP: Tensor, v_BKTP: Tensor) -> Kept:
        """The layer's storage with room for ``needed`` tokens: doubled, so that decoding copies each
        token a constant number of times."""
        kept = self._layers.get(layer)
        room = 0 if kept is None else kept.k_BKCP.shape[2]
        if kept is not None and room >= needed:
            return kept
        grown = max(needed, 2 * room)
        tensors = []
        olds = (None, None) if kept is None else (kept.k_BKCP, kept.v_BKCP)
        for old, new in zip(olds, (k_BKTP, v_BKTP), strict=True):
            _, heads, _, width = new.shape
            # Zeros: what lies beyond a sequence's end is masked, but must be a number.
            larger = new.new_zeros(self.sequences, heads, grown, width)
            if old is not None:
                larger[:, :, :room] = old
            tensors.append(larger)
        lengths = [0] * self.sequences if kept is None else kept.lengths
        self._layers[layer] = Kept(tensors[0], tensors[1], lengths)
        return self._layers[layer]


def _of_rows(t_BKCP: Tensor, rows: Sequence[int]) -> Tensor:
    """What is stored of the sequences ``rows``; of neighbours nothing is copied."""
    first, end = rows[0], rows[-1] + 1
    if list(rows) == list(range(first, end)):
        return t_BKCP[first:end]
    return t_BKCP.index_select(0, torch.tensor(list(rows), device=t_BKCP.device))


def _row_bytes(t_BKCP: Tensor) -> int:
    """Bytes of one token of one sequence."""
    return t_BKCP.shape[1] * t_BKCP.shape[3] * t_BKCP.element_size()
