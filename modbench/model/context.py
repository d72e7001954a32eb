"""What travels with one forward pass: which rule selects tokens, which tokens are padding, and the
trace that routed layers report to.

B sequences, T tokens, E experts.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from modbench.errors import UserError, known_names
from modbench.model.kv_cache import Cache

#: ``topk``: the training rule, which compares a token with later ones. ``causal``: the rule that may be
#: used to predict the next token.
Selection = Literal["topk", "causal"]
#: Which tokens' logits a pass ends with.
Logits = Literal["all", "last"]
_WHOLE = (torch.int32, torch.int64)
_SELECTIONS, _LOGITS = get_args(Selection), get_args(Logits)
Made = TypeVar("Made")


class Trace:
    """What routed layers tell of one forward pass.

    Layers that a part of the tokens enters, and all others pass by unchanged, show ``selected`` (B, T)
    bool, ``gate`` (B, T) as applied, of the others as it would be, and under the training rule
    ``predicted`` (B, T) bool, what the causal rule would say, and ``candidates`` (B, T) bool, whom the
    rules choose among, if not all; where tokens choose how deep they go, ``depths``, tokens by depth.
    Layers with experts show ``load`` (E,), tokens per expert, experts that do nothing last, ``dropped``
    (E,) beyond a capacity, and where experts choose ``taken``, how many took each token. If the trace is
    detailed, they show what `show_choice` says and, where some experts do nothing, ``no_op`` (N,), how
    many of each token's choices these are.
    """

    def __init__(self, *, detailed: bool = False) -> None:
        #: Auxiliary losses, already scaled, by (layer, name). Training adds them to the cross-entropy.
        self.losses: dict[tuple[int, str], Tensor] = {}
        #: Whatever else a layer shows, by (layer, name).
        self.tensors: dict[tuple[int, str], Tensor] = {}
        self._counts: dict[tuple[int, str], Tensor | tuple[int, ...]] = {}
        #: Activation checkpointing runs a forward pass again: all is told already, and what training
        #: moves (averages, biases) must not move twice.
        self.repeated = False
        #: Whether somebody reads what `show_choice` is told; a training step keeps none of it.
        self.detailed = detailed
        #: A layer's decision was replaced by an even one (`modbench.routing.force_balance`).
        self.forced = False

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """What runs inside is a forward pass run again."""
        self.repeated = True
        try:
            yield
        finally:
            self.repeated = False

    def loss(self, layer: int, name: str, value: Tensor) -> None:
        """
        Raises:
            UserError: it is no tensor of one number.
        """
        if not isinstance(value, Tensor) or value.numel() != 1:
            told = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            raise UserError(
                f"loss '{name}' of layer {layer} is {told}; it must be a tensor of one number"
            )
        if not self.repeated:
            self.losses[layer, name] = value

    def show(self, layer: int, name: str, value: Tensor) -> None:
        """
        Raises:
            UserError: it is no tensor, or a load that isn't one number of each expert.
        """
        if not isinstance(value, Tensor) or (name == "load" and value.dim() != 1):
            told = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            right = "(E,), a number of each expert" if name == "load" else "a tensor"
            raise UserError(f"layer {layer} shows {name} {told}; it must be {right}")
        if not self.repeated:
            self.tensors[layer, name] = value.detach()

    def show_choice(
        self,
        layer: int,
        scores: Tensor,
        chosen: Tensor,
        real: Tensor | None = None,
        gates: Tensor | None = None,
    ) -> None:
        """Of each token and expert (..., E) the router's score, before it is renormalised or scaled,
        whether they were put together, and by what the expert's output is multiplied if so, 0 where it
        has none; ``real`` (...): which tokens are no padding. Kept of the real tokens as ``scores``
        (N, E), ``chosen`` (N, E) bool and ``weights`` (N, E), if the trace is detailed."""
        if not self.detailed:
            return
        shown = {"scores": scores, "chosen": chosen}
        if gates is not None:
            shown["weights"] = gates * chosen
        for name, value in shown.items():
            self.show(layer, name, value.flatten(0, -2) if real is None else value[real])

    def count(self, layer: int, name: str, counts: Tensor | Sequence[int]) -> None:
        """How many tokens (one count per sequence) or assignments (one count) were routed. A tensor
        stays where it is until somebody asks, so that a GPU isn't waited for."""
        if self.repeated:
            return
        self._counts[layer, name] = counts if isinstance(counts, Tensor) else tuple(counts)

    @property
    def counts(self) -> dict[tuple[int, str], tuple[int, ...]]:
        """Realised routing, as `modbench.ledger.Workload` takes it."""
        return {
            key: tuple(value.reshape(-1).tolist()) if isinstance(value, Tensor) else value
            for key, value in self._counts.items()
        }

    def auxiliary_loss(self) -> Tensor | float:
        """The sum of all auxiliary losses; 0.0 where there are none."""
        return sum(self.losses.values(), start=0.0)


@dataclass(kw_only=True)
class Context:
    """One forward pass.

    ``lengths_B``: how many tokens of each sequence are real; the rest, on the right, is padding and
    enters no router. None: all are real. ``positions_BT``: the tokens' positions, None for 0..T-1.
    ``tokens_BT``: the token ids, set by the decoder; None where a layer runs by itself.
    ``cache``: the tokens are new ones after those that it keeps; ``rows``: which of its sequences they
    belong to, None for all; ``past``: how many tokens of each came here before. ``segments``: all lie in
    one row, so many of each sequence, one after another; attention keeps them apart. ``logits``: of
    every token, or of each sequence's last real one alone.
    ``checkpoint``: keep only each layer's input for the backward pass, and run its forward pass again.
    ``forced_balance``: routers decide evenly, whatever their scores (`modbench.routing.force_balance`).
    ``outer``: the context that these tokens were gathered from, and ``gather``, which gathers what there
    is of each token there, (B, T, ...); none where no tokens were.

    A layer that processes some of the tokens gets the inner context from
    `modbench.routing.gathered_tokens.GatheredTokens`, which carries all of this over.
    """

    selection: Selection = "topk"
    lengths_B: Tensor | None = None
    positions_BT: Tensor | None = None
    tokens_BT: Tensor | None = None
    trace: Trace = field(default_factory=Trace)
    cache: Cache | None = None
    rows: Sequence[int] | None = None
    past: Sequence[int] = ()
    segments: Sequence[int] = ()
    logits: Logits = "all"
    checkpoint: bool = False
    forced_balance: bool = False
    outer: "Context | None" = None
    gather: Callable[[Tensor], Tensor] | None = None
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a selection rule or a choice of logits that isn't known, or lengths that are no
                whole numbers, one of each sequence.
        """
        for name, known in (("selection", _SELECTIONS), ("logits", _LOGITS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"{name} '{value}' is not known; {known_names(value, known)}")
        if self.lengths_B is not None:
            _check_kind(self.lengths_B)

    def check(self, tokens_BT: Tensor) -> None:
        """
        Raises:
            UserError: no tokens, or lengths or positions that aren't those of ``tokens_BT``, or
                positions beside a cache.
        """
        if not isinstance(tokens_BT, Tensor) or tokens_BT.dtype not in _WHOLE:
            kind = getattr(tokens_BT, "dtype", type(tokens_BT).__name__)
            raise UserError(f"tokens are {kind}; they must be a tensor (B, T) of int32 or int64")
        if tokens_BT.dim() != 2 or not all(map(int, tokens_BT.shape)):
            raise UserError(
                f"tokens are of shape {tuple(tokens_BT.shape)}; give (B, T), one token or more"
            )
        if self.positions_BT is not None:
            if self.cache is not None:
                raise UserError("positions_BT with a cache, which knows them; leave them out")
            if self.positions_BT.shape != tokens_BT.shape:
                raise UserError(
                    f"positions_BT is of shape {tuple(self.positions_BT.shape)} for tokens of shape "
                    f"{tuple(tokens_BT.shape)}; give each token one"
                )
        # Only where values are at hand: a GPU would be waited for, and shapes alone have none.
        if self.lengths_B is not None and type(self.lengths_B) is Tensor and self.lengths_B.is_cpu:
            self.lengths(tokens_BT)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` gives, made once for all layers that ask for ``key`` in this context. A compiled
        program makes it where it is asked for, for that joins what comes after."""
        if torch.compiler.is_compiling():
            return make()
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]

    def lengths(self, x_BTD: Tensor) -> list[int]:
        """Real tokens of each sequence of ``x_BTD``.

        Raises:
            UserError: there isn't one of each sequence, between 1 and T.
        """
        sequences, tokens = x_BTD.shape[:2]
        if self.lengths_B is None:
            return [tokens] * sequences
        lengths: list[int] = self.lengths_B.tolist()
        if len(lengths) != sequences or min(lengths) < 1 or max(lengths) > tokens:
            raise UserError(
                f"lengths_B is {lengths} for {sequences} sequences of {tokens} tokens; give each one "
                f"from 1 to {tokens}"
            )
        return lengths

    def before(self, x_BTD: Tensor) -> list[int]:
        """Tokens that came before those of ``x_BTD``, of each sequence."""
        return list(self.past) if self.past else [0] * len(x_BTD)

    def positions(self, x_BTD: Tensor) -> Tensor:
        """Positions (B, T) of the tokens of ``x_BTD``."""
        if self.positions_BT is not None:
            return self.positions_BT
        sequences, tokens = x_BTD.shape[:2]
        return torch.arange(tokens, device=x_BTD.device).expand(sequences, tokens)

    def real(self, x_BTD: Tensor) -> Tensor | None:
        """Which tokens of ``x_BTD`` are no padding, (B, T) bool; None: all of them."""
        if self.lengths_B is None:
            return None
        return torch.arange(x_BTD.shape[1], device=x_BTD.device) < self.lengths_B[:, None]


def _check_kind(lengths_B: object) -> None:
    if not isinstance(lengths_B, Tensor):
        raise UserError(f"lengths_B is {lengths_B!r}; it must be a tensor, or None if none is padded")
    if lengths_B.dim() != 1 or lengths_B.dtype not in _WHOLE:
        raise UserError(
            f"lengths_B is of shape {tuple(lengths_B.shape)} and {lengths_B.dtype}; it must be (B,) and "
            "int32 or int64"
        )
