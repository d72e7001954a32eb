"""Forward passes that score continuations: logits at chosen places, with or without a shared prefix,
and the tokens, FLOPs and seconds they cost.

B sequences, T tokens, R requested rows of logits, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from modbench.ledger import Ledger, Workload
from modbench.model.context import Context, Selection
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace

Tokens = tuple[int, ...]
#: (row of the batch, place in the sequence) of a requested row of logits.
Place = tuple[int, int]


@dataclass(kw_only=True)
class Cost:
    """Cost of forward passes.

    ``tokens``: real input tokens, a shared prefix once. FLOPs (convention ``model``) are of these tokens
    and of the logits that were asked for; ``nominal`` follows the options, ``realised`` the routing;
    both stay 0 for a model without a ledger. ``routed`` of ``offered`` pairs of a token and a routed
    layer were processed by that layer. ``seconds`` include the work outside the model.
    """

    tokens: int = 0
    seconds: float = 0.0
    nominal_flops: int = 0
    realised_flops: int = 0
    routed: int = 0
    offered: int = 0

    @property
    def share_routed(self) -> float | None:
        """Share of tokens routed, averaged over routed layers; None for a model without any."""
        return self.routed / self.offered if self.offered else None

    def per_token(self) -> dict[str, float | None]:
        """Tokens, and seconds and FLOPs per token; None for FLOPs that are not known."""
        tokens = max(1, self.tokens)
        return {
            "tokens": self.tokens,
            "seconds_per_token": self.seconds / tokens,
            "nominal_flops_per_token": self.nominal_flops / tokens if self.nominal_flops else None,
            "realised_flops_per_token": self.realised_flops / tokens if self.realised_flops else None,
            "share_routed": self.share_routed,
        }


class ScoringPasses:
    """Runs ``model(tokens_BT, context) -> logits_BTV`` without a gradient, under one selection rule.

    Sequences are padded on the right with token ``padding``, with their lengths in the context.
    """

    def __init__(self, model: nn.Module, *, rule: Selection, padding: int) -> None:
        self.model = model
        self.rule = rule
        self.padding = padding
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.cost = Cost()
        self.watch: Callable[[], object] = lambda: None  #: called before each forward pass
        self._head_flops: int | None = None

    @property
    def has_cache(self) -> bool:
        """True if continuations can be scored from a cached prefix."""
        return isinstance(self.model, LanguageModel) and self.rule == "causal"

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Context in which the model is in evaluation mode and seconds are added to `cost`."""
        training = self.model.training
        started = time.perf_counter()
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)
            self.cost.seconds += time.perf_counter() - started

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Context whose forward passes and seconds are not added to `cost`; lies within `timed`."""
        cost = self.cost
        started = time.perf_counter()
        self.cost = Cost()
        try:
            yield
        finally:
            self.cost = cost
            cost.seconds -= time.perf_counter() - started

    def whole(self, batch: Sequence[Tokens], places: Sequence[Place]) -> Tensor:
        """Return the logits (R, V), in float32 or wider, at ``places`` of the sequences ``batch``."""
        return self._run(batch, places, None)

    def prefill(self, prefixes: Sequence[Tokens]) -> tuple[Tensor, Cache]:
        """Return the logits (B, V) after each prefix, as `whole`, and the cache that holds them."""
        cache = Cache(len(prefixes))
        places = [(row, len(prefix) - 1) for row, prefix in enumerate(prefixes)]
        return self._run(prefixes, places, cache), cache

    def extend(self, cache: Cache, batch: Sequence[Tokens], places: Sequence[Place]) -> Tensor:
        """Return the logits (R, V) at ``places`` of ``batch``, as `whole`; it follows the sequences of
        ``cache``."""
        return self._run(batch, places, cache)

    @torch.no_grad()
    def _run(self, batch: Sequence[Tokens], places: Sequence[Place], cache: Cache | None) -> Tensor:
        self.watch()
        lengths = [len(tokens) for tokens in batch]
        longest = max(lengths)
        padded = [[*tokens, *[self.padding] * (longest - len(tokens))] for tokens in batch]
        tokens_BT = torch.tensor(padded, device=self.device)
        lengths_B = None
        if min(lengths) < longest:
            lengths_B = torch.tensor(lengths, device=self.device)
        past = tuple(cache.read) if cache is not None else ()
        context = Context(selection=self.rule, lengths_B=lengths_B, cache=cache)
        rows_R, places_R = torch.tensor(list(places), device=self.device).unbind(1)
        logits_at = getattr(self.model, "logits_at", None)
        if logits_at is None:
            logits_RV = self.model(tokens_BT, context)[rows_R, places_R]
        else:
            logits_RV = logits_at(tokens_BT, context, rows_R, places_R)
        self._add_cost(tuple(lengths), past, context, len(places))
        half = logits_RV.element_size() < 4
        return logits_RV.float() if half else logits_RV  # type: ignore[no-any-return]

    def _add_cost(
        self, lengths: tuple[int, ...], past: tuple[int, ...], context: Context, logits: int
    ) -> None:
        self.cost.tokens += sum(lengths)
        routed, offered = _routed(context.trace, context.lengths_B, lengths)
        self.cost.routed += routed
        self.cost.offered += offered
        ledger = getattr(self.model, "ledger", None)
        if ledger is None:
            return
        prefill = Workload(lengths=lengths, past=past, phase="prefill")
        # Phase "prefill" has the logits of one token per sequence.
        head = (logits - len(lengths)) * self._head(ledger)
        nominal = ledger(prefill).total() + head
        self.cost.nominal_flops += nominal
        if counts := context.trace.counts:
            realised = ledger(replace(prefill, counts=counts)).total() + head
        self.cost.realised_flops += realised if counts else nominal

    def _head(self, ledger: Callable[[Workload], Ledger]) -> int:
        """Return the FLOPs of one token's logits."""
        if self._head_flops is None:
            both = ledger(Workload(lengths=(2,))).total()
            self._head_flops = both - ledger(Workload(lengths=(2,), phase="prefill")).total()
        return self._head_flops


def _routed(trace: Trace, lengths_B: Tensor | None, lengths: Sequence[int]) -> tuple[int, int]:
    """Return the pairs of a real token and a routed layer that processed it, and all such pairs. A layer
    whose tokens all go to some expert processes each."""
    layers: dict[int, int] = {}
    for (layer, name), value in trace.tensors.items():
        if name == "selected":
            layers[layer] = _real_sum(value, lengths_B)
        elif name == "taken" and (layer, "selected") not in trace.tensors:
            padded = lengths_B is not None and value.numel() > sum(lengths)
            chosen = (value > 0).view(len(lengths), -1) if padded else value > 0
            layers[layer] = _real_sum(chosen, lengths_B if padded else None)
        elif name == "load":
            layers.setdefault(layer, sum(lengths))
    return sum(layers.values()), len(layers) * sum(lengths)


def _real_sum(chosen_BT: Tensor, lengths_B: Tensor | None) -> int:
    if lengths_B is not None:
        places_T = torch.arange(chosen_BT.shape[1], device=chosen_BT.device)
        chosen_BT = chosen_BT & (places_T < lengths_B[:, None])
    return int(chosen_BT.sum())
