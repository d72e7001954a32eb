"""Gather the selected tokens of each sequence for a block, and add its output back.

B sequences, T tokens, D model width; R sequences with a selected token; K most selected tokens of a
sequence; S = R * K slots; N selected tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modbench.model.context import Context, host_lengths
from modbench.routing.topk import nonzero_indices, pack_tokens


class GatheredTokens:
    """The selected tokens of ``x_BTD``, in their own order and at their own positions, never padding.

    ``counts[b]`` tokens of sequence b are selected, at least one in all. Sequences without a selected
    token are left out; those with fewer than others are padded with tokens that are not selected, whose
    updates `add_to` drops. The block at depth ``layer`` is given ``x_RKD`` and ``context``.
    """

    def __init__(
        self, x_BTD: Tensor, selected_BT: Tensor, counts: Sequence[int], context: Context, *, layer: int
    ) -> None:
        rows = [row for row, count in enumerate(counts) if count]
        lengths = [counts[row] for row in rows]
        self._selected = sum(lengths)
        real_BT = context.real(x_BTD)
        self._selected_BT = selected_BT if real_BT is None else selected_BT & real_BT
        self._shape = (len(rows), max(lengths))
        self._slots_S = self._slots(rows, *x_BTD.shape[:2])
        cached_rows = None
        past = []
        if context.cache is not None:
            cached_rows = [row if context.rows is None else context.rows[row] for row in rows]
            past = context.cache.lengths(layer, cached_rows)
        padded = min(lengths) != max(lengths)
        self.x_RKD = self.gather(x_BTD)
        self.context = Context(
            selection=context.selection,
            lengths_B=host_lengths(lengths, x_BTD.device) if padded else None,
            positions_BT=self.gather(context.positions(x_BTD)),
            tokens_BT=None if context.tokens_BT is None else self.gather(context.tokens_BT),
            trace=context.trace,
            cache=context.cache,
            rows=cached_rows,
            past=past,
            forced_balance=context.forced_balance,
            first_row=context.first_row,
        )

    def gather(self, values_BT: Tensor) -> Tensor:
        """Gather the values of the selected tokens: (B, T, ...) -> (R, K, ...)."""
        return values_BT.flatten(0, 1).index_select(0, self._slots_S).unflatten(0, self._shape)

    def add_to(self, x_BTD: Tensor, update_RKD: Tensor) -> Tensor:
        """Add each selected token's update to ``x_BTD``; the others stay the same to the bit."""
        slots_N, update_ND = self._selected_only(update_RKD.to(x_BTD.dtype))
        return x_BTD.flatten(0, 1).index_add(0, slots_N, update_ND).view_as(x_BTD)

    def put_into(self, x_BTD: Tensor, out_RKD: Tensor) -> Tensor:
        """Replace each selected token of ``x_BTD``; the others stay the same to the bit."""
        slots_N, out_ND = self._selected_only(out_RKD.to(x_BTD.dtype))
        return x_BTD.flatten(0, 1).index_copy(0, slots_N, out_ND).view_as(x_BTD)

    def _selected_only(self, values_RKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return slots and values of the selected tokens, (N,) and (N, D), without those that pad."""
        values_SD = values_RKD.flatten(0, 1)
        if self._selected == self._slots_S.numel():
            return self._slots_S, values_SD
        selected_N = nonzero_indices(self.gather(self._selected_BT), self._selected)
        return self._slots_S.index_select(0, selected_N), values_SD.index_select(0, selected_N)

    def _slots(self, rows: Sequence[int], sequences: int, tokens: int) -> Tensor:
        """Return the index of each slot's token among all B * T tokens, (S,)."""
        on = self._selected_BT.device
        longest = self._shape[1]
        if len(rows) == sequences:
            first_R = torch.arange(sequences, device=on)
            selected_RT = self._selected_BT
        else:
            first_R = torch.tensor(rows, device=on)
            selected_RT = self._selected_BT.index_select(0, first_R)
        if tokens == 1:
            return first_R
        full = len(rows) * longest == self._selected
        index_RK = pack_tokens(selected_RT, longest, full=full)
        return (index_RK + (first_R * tokens)[:, None]).flatten()


def group_equal_sizes(counts: Sequence[int]) -> list[list[int]]:
    """Split ``counts`` into groups of sequences with equal counts of at least 1; 0 for all others. Sent
    through `GatheredTokens` group by group, no slot is padded: for routers with data-dependent counts,
    whose ``ledger`` then also holds for the dispatched tokens."""
    return [[n if n == size else 0 for n in counts] for size in sorted(set(counts) - {0})]
