"""Our KV cache as transformers' models use one: a view for one pass, and the masks that belong to it.

Rows of a batch may have different numbers of cached and new tokens. Keys are stored without gaps, so
that a row costs what its tokens cost, as in our decoder.

B sequences, T new tokens, C cached and new tokens, K key/value heads, P width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache as TheirCache
from transformers.cache_utils import DynamicLayer

from modbench.errors import UserError
from modbench.model.kv_cache import Cache

#: Kinds of layers whose state is keys and values of tokens.
_KINDS = ("full_attention", "sliding_attention")


def windows_of(config: Any) -> list[int | None]:
    """Return the window of each layer of a config of transformers; None: no window. Raise a `UserError`
    for a layer of another kind than attention."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * config.num_hidden_layers
    if other := sorted(set(kinds) - set(_KINDS)):
        raise UserError(
            f"model_type '{config.model_type}' has layers of kind '{other[0]}'; a row needs a model "
            f"whose layers are {' or '.join(_KINDS)}"
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]


class CacheView(TheirCache):
    """The cache of a pass that reads ``lengths`` new tokens of each sequence into ``cache``."""

    def __init__(
        self,
        cache: Cache,
        windows: Sequence[int | None],
        lengths: Sequence[int],
    ) -> None:
        past = list(cache.read)
        layers: list[Any] = [
            _LayerView(cache, number, window, past, lengths) for number, window in enumerate(windows)
        ]
        super().__init__(layers=layers)


class _LayerView(DynamicLayer):
    """A layer of `CacheView`."""

    def __init__(
        self,
        cache: Cache,
        number: int,
        window: int | None,
        past: Sequence[int],
        lengths: Sequence[int],
    ) -> None:
        super().__init__()
        self._cache, self._number, self._window = cache, number, window
        self._past, self._lengths = past, lengths
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Store the new keys and values. Return those that the new tokens may see: from the first one in
        the window on."""
        k_BKCP, v_BKCP = self._cache.extend(self._number, key_states, value_states, self._lengths)
        first = starts(self._past, self._window)
        if not any(first):
            return k_BKCP, v_BKCP
        width = keys_seen(self._past, self._lengths, self._window)
        if min(first) == max(first):
            return k_BKCP[:, :, first[0] :], v_BKCP[:, :, first[0] :]
        places_BC = torch.tensor(first)[:, None] + torch.arange(width)
        places_BC = places_BC.clamp(max=k_BKCP.shape[2] - 1).to(k_BKCP.device)

        def seen(stored_BKCP: Tensor) -> Tensor:
            index_BKCP = places_BC[:, None, :, None].expand(
                -1, stored_BKCP.shape[1], -1, stored_BKCP.shape[3]
            )
            return stored_BKCP.gather(2, index_BKCP)

        return seen(k_BKCP), seen(v_BKCP)

    def get_seq_length(self) -> int:
        return max(self._past)

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return max(self._past) + int(query_length), 0


def starts(past: Sequence[int], window: int | None) -> list[int]:
    """Return the first cached token of each sequence that a new one may see."""
    return [0 if window is None else max(0, tokens - window + 1) for tokens in past]


def keys_seen(past: Sequence[int], lengths: Sequence[int], window: int | None) -> int:
    """Return the largest number of keys that the new tokens of a sequence see together."""
    return max(
        before + new - first
        for before, new, first in zip(past, lengths, starts(past, window), strict=True)
    )


def mask(
    past: Sequence[int], lengths: Sequence[int], tokens: int, window: int | None, on: torch.device
) -> Tensor:
    """Return the mask (B, 1, T, C) of ``tokens`` new tokens on the keys of `CacheView`, True where a
    token is seen. A padded token sees what the last real one does, since it must see something."""
    first_B1 = torch.tensor(starts(past, window), device=on)[:, None]
    past_B1 = torch.tensor(list(past), device=on)[:, None]
    last_B1 = past_B1 + torch.tensor(list(lengths), device=on)[:, None] - 1
    query_BT1 = torch.minimum(past_B1 + torch.arange(tokens, device=on), last_B1)[:, :, None]
    key_B1C = (first_B1 + torch.arange(keys_seen(past, lengths, window), device=on))[:, None]
    seen_BTC = key_B1C <= query_BT1
    if window is not None:
        seen_BTC &= key_B1C > query_BT1 - window
    return seen_BTC[:, None]
