"""KV caches of models of transformers. `CacheView`: our cache as a model of a row uses one in a pass,
with the masks that belong to it. `RoutedCacheLayer`: the keys and values of the selected tokens of a
layer with depth routing, in such a view or in a cache of transformers.

Sequences of a batch may have different numbers of cached and new tokens. Keys are stored without gaps,
so that a sequence costs what its tokens cost, as in our decoder.

B sequences, T new tokens, C cached and new tokens, K key/value heads, P width of a head; of routed
layers R sequences with a selected token, K selected tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache as TheirCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

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
            f"model_type '{config.model_type}' has layers of kind '{other[0]}'; give a model whose "
            f"layers are {' or '.join(_KINDS)}, such as Llama, Qwen3 or Gemma2"
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


class RoutedCacheLayer(DynamicLayer):
    """Takes the place of layer ``layer`` in a cache of transformers. It stores the selected tokens of
    each sequence, and reports the tokens seen, from which transformers makes positions and masks.
    ``shared``: the cache of all layers to store them in, which the model advances."""

    is_croppable = False

    def __init__(
        self, layer: int, sequences: int, window: int | None, shared: Cache | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.window = window
        self.is_sliding = window is not None
        self.sliding_window = window
        #: tokens of each sequence, padding included
        self.seen = 0 if shared is None else max(shared.read)
        self.store = Cache(sequences) if shared is None else shared
        self._is_shared = shared is not None
        #: Positions of the stored tokens, which a sliding window needs.
        self.positions = Cache(sequences)
        self._rows: Sequence[int] | None = None
        self._new: Sequence[int] = ()

    def expect(self, rows: Sequence[int] | None, new: Sequence[int]) -> None:
        """Name the sequences that the next `update` is for, and how many tokens of each are real."""
        self._rows, self._new = rows, new

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the selected tokens; return keys and values of all stored ones, (R, H, C, P) each."""
        first = not any(self.store.lengths(self.layer, self._rows))
        keys, values = self.store.extend(self.layer, key_states, value_states, self._new, self._rows)
        return (key_states, value_states) if first else (keys, values)

    def key_positions(self, positions_RK: Tensor) -> Tensor:
        """Store the positions of the new tokens; return those of all stored tokens, (R, C)."""
        first = not any(self.positions.lengths(self.layer, self._rows))
        new_R1K1 = positions_RK[:, None, :, None]
        stored, _ = self.positions.extend(self.layer, new_R1K1, new_R1K1, self._new, self._rows)
        return positions_RK if first else stored[:, 0, :, 0]

    def advance(self, tokens: int, real: Sequence[int]) -> None:
        """Record ``tokens`` more tokens of each sequence, ``real`` of them without padding."""
        if not self._is_shared:
            self.seen += tokens
            self.store.advance(real)

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1 if self.window is None else self.window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return what the layer that this one replaced would: length and offset of the keys."""
        query_length = int(query_length)
        if self.window is None or self.seen < self.window:
            return self.seen + query_length, 0
        return self.window - 1 + query_length, self.seen - self.window + 1

    def reset(self) -> None:
        self.seen = 0
        self.store, self.positions = Cache(self.store.sequences), Cache(self.store.sequences)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        numbers = torch.arange(self.store.sequences)
        self._select(numbers[indices.cpu()].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select([row for row in range(self.store.sequences) for _ in range(repeats)])

    def _select(self, rows: list[int]) -> None:
        # Room for 16 further tokens: beams are reordered at each step, and most steps select nothing.
        self.store = self.store.select(rows, room=16)
        self.positions = self.positions.select(rows, room=16)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise UserError(
                f"{type(self).__name__}: tokens can't be removed from the cache of a routed layer, as "
                "assisted decoding does; call generate without an assistant"
            )

    def offload(self) -> None:
        raise UserError(
            f"{type(self).__name__}: the cache of a routed layer can't be offloaded; use a DynamicCache "
            "without offloading"
        )


@dataclass(frozen=True, kw_only=True)
class LayerStored:
    """Decoding so far, of a routed layer."""

    layer: int
    seen: int  #: tokens of all sequences, without padding
    selected: int  #: those whose keys and values are stored
    kv_bytes: int  #: bytes of these keys and values


def decoding_report(cache: TheirCache) -> list[LayerStored]:
    """Return the tokens seen and selected, and the bytes of keys and values, of each routed layer that
    ``cache``, a cache of transformers, was given to."""
    return [
        LayerStored(
            layer=layer.layer,
            seen=sum(layer.store.read),
            selected=sum(layer.store.lengths(layer.layer)),
            kv_bytes=layer.store.bytes,
        )
        for layer in cache.layers
        if isinstance(layer, RoutedCacheLayer)
    ]


def refuse_offloaded(cache: TheirCache) -> None:
    """Raise a `UserError` for a cache that moves its layers to the CPU."""
    if getattr(cache, "offloading", False):
        raise UserError(
            f"{type(cache).__name__} is offloaded, which a routed layer does not support; use a "
            "DynamicCache without offloading"
        )


def routed_cache_layer(cache: TheirCache, layer: int, sequences: int) -> RoutedCacheLayer:
    """Return layer ``layer`` of ``cache``, put there at its first use. Raise a `UserError` for a cache
    whose layers do not grow as tokens come, or one that holds tokens of another model."""
    template = getattr(cache, "layer_class_to_replicate", None)
    while len(cache.layers) <= layer and template is not None:
        cache.layers.append(template())
    present: Any = cache.layers[layer]
    if isinstance(present, RoutedCacheLayer):
        if present.store.sequences != sequences:
            raise UserError(
                f"the cache holds {present.store.sequences} sequences and was given {sequences}; give "
                "as many"
            )
        return present
    if type(present) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise UserError(
            f"{type(cache).__name__} with {type(present).__name__}: a routed layer stores a number of "
            "tokens that is not known beforehand; use a DynamicCache (in generate, leave out "
            "cache_implementation)"
        )
    if present.get_seq_length():
        raise UserError(
            f"layer {layer} of the {type(cache).__name__} holds tokens of a model that is not "
            "retrofitted; begin with an empty DynamicCache"
        )
    window = present.sliding_window if isinstance(present, DynamicSlidingWindowLayer) else None
    routed = RoutedCacheLayer(layer, sequences, window)
    cache.layers[layer] = routed
    return routed
