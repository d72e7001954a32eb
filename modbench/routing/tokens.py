"""The view of the tokens that a router's hooks decide about, and their seeded noise.

B sequences, T tokens, N tokens that are not padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from modbench.model.context import Context
from modbench.model.init import stream

#: Between the keys of passes that begin at two rows of a batch; any odd number.
_KEYS_APART = 1_000_003


class Noise(nn.Module):
    """Seeded generators of a layer: another one for each training pass, the same one when activation
    checkpointing repeats a pass. A resumed run continues with the next one."""

    key: Tensor
    draws: Tensor

    def __init__(self, layer: int, name: str = "") -> None:
        super().__init__()
        #: ``name`` tells apart two routers in one layer, such as experts in a depth-routed block.
        self.layer = layer
        self.name = f"{name}." if name else ""
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def initialise(self, seed: int) -> None:
        self.key.fill_(stream(seed, f"layers.{self.layer}.{self.name}noise").initial_seed() & 0x7FFFFFFF)

    def generator(self, context: Context) -> torch.Generator:
        """Return the generator of this pass, on the device of the layer. It reads a buffer, for which
        the host waits."""
        if self.key.is_meta or type(self.key) is not Tensor:  # no values, as when FLOPs are counted
            return torch.Generator()
        return self._seeded(context)

    @torch._disable_dynamo
    def _seeded(self, context: Context) -> torch.Generator:
        name = f"{self.name}draw"
        shown = context.trace.tensors.get((self.layer, name))
        if shown is None:
            shown = self.draws.clone()
            context.trace.show(self.layer, name, shown)
            if self.training:
                self.draws += 1
        key = int(self.key)
        if context.first_row is not None:
            key = key + _KEYS_APART * int(context.first_row) & 0x7FFFFFFF
        seed = (key << 32) + int(shown)
        return torch.Generator(device=self.key.device).manual_seed(seed)


@dataclass(frozen=True)
class Tokens:
    """A read-only view of the tokens that a hook decides about, in the shape of its scores: (B, T) in a
    `DepthRouter`, padding included; (N,) in an `ExpertRouter`, without padding, sequence after sequence.

    ``ids``: token ids, or positions where a layer runs without ids. ``positions``: in the sequence, from
    0. ``layer``: depth of the layer, from 0. ``training``: in a training pass, which may update state.
    ``causal``: predicting, where no later token of the sequence and no other sequence may have an
    influence. ``lengths`` and ``past``: new and earlier tokens of each sequence, without padding.
    ``state``: the buffers of the scorer by name, as this pass found them; `update` changes them.
    """

    ids: Tensor
    positions: Tensor
    layer: int
    training: bool
    causal: bool
    lengths: Sequence[int]
    past: Sequence[int]
    _noise: Noise = field(repr=False)
    _context: Context = field(repr=False)
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def generator(self) -> torch.Generator:
        """A seeded generator for noise: ``torch.rand(scores.shape, generator=tokens.generator,
        device=scores.device)``."""
        return self._noise.generator(self._context)

    @property
    def real(self) -> Tensor | None:
        """The tokens that are not padding, (B, T) bool; None: all of them."""
        return self._context.real(self.ids) if self.ids.dim() == 2 else None

    def record(self, name: str, value: Tensor | float) -> None:
        """Record a number of a series of the author's own, see `modbench.model.trace.Trace.record`."""
        self._context.trace.record(name, value)

    @property  # not cached: torch.compile leaves a program at the lock of a cached property
    def sequences(self) -> Tensor:
        """The sequence of each token, in the shape of the scores."""
        lengths = self.lengths
        on = self.ids.device
        if self.ids.dim() == 2:
            rows_B1 = torch.arange(self.ids.shape[0], device=on)[:, None]
            return rows_B1.expand(self.ids.shape)
        if len(set(lengths)) == 1:  # no copy from the host, which would wait for a GPU
            return torch.arange(len(lengths), device=on).repeat_interleave(lengths[0])
        return torch.repeat_interleave(
            torch.arange(len(lengths), device=on), torch.tensor(lengths, device=on)
        )


def tokens_of(
    x_BTD: Tensor,
    context: Context,
    noise: Noise,
    *,
    slots_N: Tensor | None = None,
    flat: bool = False,
    scorer: nn.Module | None = None,
) -> Tokens:
    """Return the view of the tokens of ``x_BTD``: (B, T), or if ``flat`` (N,), of the ``slots_N`` of
    all B * T slots (None: all). ``scorer``: the module whose buffers are the state."""
    positions_BT = context.positions(x_BTD)
    ids_BT = positions_BT if context.tokens_BT is None else context.tokens_BT
    ids, positions = ids_BT, positions_BT
    if flat:
        ids, positions = ids_BT.flatten(), positions_BT.flatten()
        if slots_N is not None:
            ids, positions = ids.index_select(0, slots_N), positions.index_select(0, slots_N)
    lengths, past = context.lengths(x_BTD), context.before(x_BTD)
    if flat and 0 in lengths:  # without sequences of padding alone
        past = [before for before, length in zip(past, lengths, strict=True) if length]
        lengths = [length for length in lengths if length]
    return Tokens(
        ids=ids,
        positions=positions,
        layer=noise.layer,
        training=noise.training and context.selection == "topk",
        causal=context.selection == "causal",
        lengths=lengths,
        past=past,
        _noise=noise,
        _context=context,
        state=_state(scorer, noise, context),
    )


def _state(scorer: nn.Module | None, noise: Noise, context: Context) -> dict[str, Tensor]:
    """The scorer's buffers as the pass found them: a repeated pass must decide as the first one did,
    though training has changed them in between."""
    buffers: dict[str, Tensor] = {}
    for name, buffer in scorer.named_buffers() if scorer is not None else ():
        key = f"{noise.name}state.{name}"
        if not context.trace.repeated:
            context.trace.show(noise.layer, key, buffer.clone())
        buffers[name] = context.trace.tensors[noise.layer, key]
    return buffers
