"""Some tokens of each sequence, gathered so that a block works on them alone, then put back.

B sequences, T tokens, D model width; K the most tokens that one sequence sends in; R sequences that send
any; S = R * K slots. Where they lie in one row, R is 1 and K = S is how many tokens all send together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modbench.model.context import Context
from modbench.routing.topk import nonzero_indices, pack_tokens


class GatheredTokens:
    """The selected tokens of ``x_BTD`` in their own order and at their own positions, never padding.

    ``counts[b]`` of sequence b are selected, at least one in all. Sequences that send none are left out;
    those that send fewer than others are filled up with tokens that aren't selected, whose results
    `add_to` drops. ``x_RKD`` and ``context`` are what the block at depth ``layer`` is given.

    ``in_one_row``: the block works on each token by itself, but for attention. Sequences that send
    unequally many then lie in one row, one after another (`modbench.model.context.Context`,
    ``segments``), and no slot is filled up, unless the block's cache knows earlier tokens of them.
    """

    def __init__(
        self,
        x_BTD: Tensor,
        selected_BT: Tensor,
        counts: Sequence[int],
        context: Context,
        *,
        layer: int,
        in_one_row: bool = False,
    ) -> None:
        sequences, tokens, _ = x_BTD.shape
        self._longest = max(counts)
        self._rows = [row for row, count in enumerate(counts) if count]
        kept = [counts[row] for row in self._rows]
        self._filled = sum(kept)
        real_BT = context.real(x_BTD)
        self._selected_BT = selected_BT if real_BT is None else selected_BT & real_BT
        rows, past = None, []
        if context.cache is not None:
            rows = [row if context.rows is None else context.rows[row] for row in self._rows]
            past = context.cache.lengths(layer, rows)
        ragged = min(kept) != self._longest
        in_one_row = in_one_row and ragged and not any(past)
        self._shape = (1, self._filled) if in_one_row else (len(self._rows), self._longest)
        slots_S = (
            nonzero_indices(self._selected_BT, self._filled)
            if in_one_row
            else self._filled_up(sequences, tokens)
        )
        self._slots = _Slots(slots_S, self._rows[0], self._shape)
        self.x_RKD = self.gather(x_BTD)
        self.context = Context(
            selection=context.selection,
            lengths_B=torch.tensor(kept, device=x_BTD.device) if ragged and not in_one_row else None,
            segments=kept if in_one_row else (),
            positions_BT=self.gather(context.positions(x_BTD)),
            tokens_BT=None if context.tokens_BT is None else self.gather(context.tokens_BT),
            trace=context.trace,
            cache=context.cache,
            rows=rows,
            past=past,
            forced_balance=context.forced_balance,
            outer=context,
            gather=self._slots.gather,
        )

    def gather(self, values_BT: Tensor) -> Tensor:
        """What there is of each token, (B, T, ...), of the selected ones, (R, K, ...)."""
        return self._slots.gather(values_BT)

    def add_to(self, x_BTD: Tensor, update_RKD: Tensor) -> Tensor:
        """``x_BTD`` with each selected token's update added; the others bit for bit as they are."""
        slots_S = self._slots.slots_S
        if slots_S is None:
            sum_BTD = x_BTD.clone()
            self.gather(sum_BTD).add_(update_RKD.to(x_BTD.dtype))
            return sum_BTD
        x_SD, update_SD = x_BTD.reshape(-1, x_BTD.shape[-1]), update_RKD.flatten(0, 1).to(x_BTD.dtype)
        if self._filled < slots_S.numel():
            filled_N = nonzero_indices(self.gather(self._selected_BT), self._filled)
            slots_S, update_SD = slots_S.index_select(0, filled_N), update_SD.index_select(0, filled_N)
        return x_SD.index_add(0, slots_S, update_SD).view_as(x_BTD)

    def _filled_up(self, sequences: int, tokens: int) -> Tensor | None:
        """The slots of each row, as many as the longest has; none for one token of each of some
        neighbours, which are found without (but with a gradient as all others are)."""
        on, rows = self._selected_BT.device, self._rows
        if tokens == 1 and rows[-1] - rows[0] + 1 == len(rows) and not torch.is_grad_enabled():
            return None
        if len(rows) == sequences:
            first_R, selected_RT = torch.arange(sequences, device=on), self._selected_BT
        else:
            first_R = torch.tensor(rows, device=on)
            selected_RT = self._selected_BT.index_select(0, first_R)
        if tokens == 1:
            return first_R
        index_RK = pack_tokens(selected_RT, self._longest)
        return (index_RK + (first_R * tokens)[:, None]).flatten()


@dataclass(frozen=True)
class _Slots:
    """Where the selected tokens lie among all, (S,); None: they are the only tokens of neighbouring
    sequences from ``first`` on."""

    slots_S: Tensor | None
    first: int
    shape: tuple[int, int]  #: (R, K)

    def gather(self, values_BT: Tensor) -> Tensor:
        """(B, T, ...) -> (R, K, ...)"""
        if self.slots_S is None:
            return values_BT.narrow(0, self.first, self.shape[0])
        return values_BT.flatten(0, 1).index_select(0, self.slots_S).unflatten(0, self.shape)


def group_equal_sizes(counts: Sequence[int]) -> list[list[int]]:
    """``counts`` set by set of sequences that send equally many, at least one; 0 for all others. Sent
    through `Selected` set by set, no slot is filled up: for routers that decide how many enter, whose
    ``ledger`` then holds for what is dispatched, too."""
    return [[n if n == size else 0 for n in counts] for size in sorted(set(counts) - {0})]
