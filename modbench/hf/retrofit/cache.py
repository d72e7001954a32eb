"""The cache of a retrofitted layer: the keys and values of its selected tokens.

B sequences, T new tokens, C cached and new tokens, R sequences with a selected token, K selected tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache as HubCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from modbench.errors import UserError
from modbench.model.kv_cache import Cache


class RoutedCacheLayer(DynamicLayer):
    """Takes the place of layer ``layer`` in a cache of transformers. It stores the selected tokens of
    each sequence, and reports the tokens seen, from which transformers makes positions and masks."""

    is_croppable = False

    def __init__(self, layer: int, sequences: int, window: int | None) -> None:
        super().__init__()
        self.layer = layer
        self.window = window
        self.is_sliding = window is not None
        self.sliding_window = window
        self.seen = 0  #: tokens of each sequence, padding included
        self.store = Cache(sequences)
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


def decoding_report(cache: HubCache) -> list[LayerStored]:
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


def refuse_offloaded(cache: HubCache) -> None:
    """Raise a `UserError` for a cache that moves its layers to the CPU."""
    if getattr(cache, "offloading", False):
        raise UserError(
            f"{type(cache).__name__} is offloaded, which a routed layer does not support; use a "
            "DynamicCache without offloading"
        )


def routed_cache_layer(cache: HubCache, layer: int, sequences: int) -> RoutedCacheLayer:
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
