"""The FLOPs of a part of the decoder that states no closed form: it is run on the meta device, where
nothing has values and no arithmetic is done, under the counter.

B sequences, T tokens, D model width.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from modbench.counting.counter import FlopCounter
from modbench.errors import FAULTS, NO_VALUES, UserError
from modbench.ledger import Ledger, Workload
from modbench.model.context import Context, Selection, host_lengths
from modbench.model.kv_cache import Cache

M = TypeVar("M", bound=nn.Module)
R = TypeVar("R")

Counts = dict[str, tuple[int, ...]]
#: Routing counts by name ("depth", "experts") of the part that is being counted; None: nominal ones.
realised: ContextVar[Counts | None] = ContextVar("realised", default=None)
_counted: WeakKeyDictionary[nn.Module, dict[object, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Place:
    """Position of a part: its depth, and the model's width."""

    layer: int
    width: int


def counted_ledger(
    part: nn.Module,
    place: Place,
    workload: Workload,
    *,
    mixes: bool = True,
    with_values: Callable[[], nn.Module] | None = None,
) -> Ledger:
    """Return the FLOPs of ``part`` (``forward(x_BTD, context)``) for ``workload``, counted once for each
    case. ``mixes``: tokens of a sequence attend to each other in it. ``with_values`` builds another one
    with random values, for a part that reads values or masks attention; what it raises is raised here.
    Raise a `UserError` if the part needs values and there is no such function, or its FLOPs depend on
    them, or it does not report how many tokens it routed."""
    routed = {what: counts for (layer, what), counts in workload.counts.items() if layer == place.layer}
    if not workload.padding and not mixes and any(len(c) != workload.sequences for c in routed.values()):
        # Counts of the whole batch: its tokens cost as much in one row, which needs no padding.
        one_row = replace(workload, lengths=(workload.tokens,), past=(sum(workload.past),))
        workload = replace(one_row, phase="prefill") if workload.phase == "decode" else one_row
    frozen = tuple(parameter.requires_grad for parameter in part.parameters())
    plain = replace(workload, counts={}, checkpoint=False)
    size = (plain.lengths, plain.past, plain.phase, plain.padding, plain.input_gradient)
    case = (place, frozen, tuple(sorted(routed.items())), size)

    def count(twin: nn.Module) -> Ledger:
        if with_values is None:
            return Ledger.sum(_pieces(twin, place, plain, routed))
        try:
            with FlopCounter() as counter:
                ledger = Ledger.sum(_pieces(twin, place, plain, routed))
            if not counter.unread_masks:
                return ledger
        except UserError:
            raise
        except FAULTS:  # it reads values, or fails with them, too
            pass
        return _counted_by_values(place, lambda: _pieces(with_values(), place, plain, routed))

    try:
        return counted_once(part, case, count)
    except FAULTS as error:
        if with_values is not None or isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"layer {place.layer} has no ledger and cannot be counted on the meta device "
            f"({type(error).__name__}: {reason[:200]}); {NO_VALUES}"
        ) from error


def _counted_by_values(place: Place, pieces: Callable[[], Iterator[Ledger]]) -> Ledger:
    """Return the sum of ``pieces``, in which weights and inputs are drawn at random. Raise a `UserError`
    if two draws differ."""
    draws = []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            draws.append(Ledger.sum(pieces()))
    if draws[0] != draws[1]:
        one, other = (f"{ledger.total('model'):,}" for ledger in draws)
        raise UserError(
            f"layer {place.layer}: FLOPs depend on hidden states ({one} and {other} in two draws); "
            "write a Layer that reports its routed tokens by context.trace.count"
        )
    return draws[0]


def counted_once(part: M, case: object, count: Callable[[M], R]) -> R:
    """Return what ``count`` returns for a copy of ``part`` on the meta device. It is called once for
    each ``case``; results are not kept on the part, which is copied and saved. What it raises has the
    note `NO_VALUES`."""
    known = _counted.setdefault(part, {})
    if case not in known:
        try:
            known[case] = count(_meta_twin(part))
        except FAULTS as error:
            error.add_note(NO_VALUES)
            raise
    return known[case]  # type: ignore[no-any-return]


def checked_output(part: nn.Module, place: Place, out_BTD: Any, x_BTD: Tensor) -> Tensor:
    """Return ``out_BTD``, what the ``forward`` of ``part`` returned for ``x_BTD``. Raise a `UserError`
    if it is not a tensor of the shape of ``x_BTD``."""
    if not isinstance(out_BTD, Tensor) or out_BTD.shape != x_BTD.shape:
        is_tensor = isinstance(out_BTD, Tensor)
        returned = f"shape {tuple(out_BTD.shape)}" if is_tensor else type(out_BTD).__name__
        raise UserError(
            f"forward of {type(part).__name__} in layer {place.layer} returned {returned}; expected a "
            f"tensor of shape (B, T, D) = {tuple(x_BTD.shape)}"
        )
    return out_BTD


def _meta_twin(module: M) -> M:
    """Return a copy of ``module`` on the meta device; no values are copied."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)


def _pieces(part: nn.Module, place: Place, workload: Workload, routed: Counts) -> Iterator[Ledger]:
    """Yield the ledgers that add up to that of ``workload``: all sequences in one pass, where padding
    counts or none is padded and routing is nominal; else sequence by sequence."""
    if workload.phase == "decode" and max(workload.lengths) > 1:
        for step in range(max(workload.lengths)):
            lengths = tuple(int(n > step) for n in workload.lengths)
            past = tuple(p + min(step, n) for p, n in zip(workload.past, workload.lengths, strict=True))
            yield from _pieces(part, place, replace(workload, lengths=lengths, past=past), routed)
        return
    alike = len(set(zip(workload.lengths, workload.past, strict=True))) == 1
    whole = [counts for what, counts in routed.items() if len(counts) != workload.sequences]
    if workload.padding or whole or (alike and not routed):
        yield _pass(part, place, workload, routed)
        return
    rows = zip(workload.lengths, workload.past, *routed.values(), strict=True)
    for (length, past, *counts), times in Counter(rows).items():
        if length:
            lone = replace(workload, lengths=(length,), past=(past,))
            each: Counts = {what: (count,) for what, count in zip(routed, counts, strict=True)}
            yield _pass(part, place, lone, each) * times


def _pass(part: nn.Module, place: Place, workload: Workload, routed: Counts) -> Ledger:
    """Count one pass, under the rule that routes as ``routed`` says it was."""
    cached = any(workload.past) or workload.phase in ("prefill", "decode")
    rules: tuple[Selection, ...] = ("causal",) if cached else ("topk", "causal")
    if workload.phase == "train":
        rules = ("topk",)
    told = {what: counts for what, counts in routed.items() if what != "past"}
    for rule in rules:
        ledger, seen = _run(part, place, workload, routed, rule, cached)
        if all(seen.get((place.layer, what)) == counts for what, counts in told.items()):
            return ledger
    raise UserError(
        f"layer {place.layer} routed {told} tokens, and counted on the meta device it does not report "
        "the same; give it a ledger, or take counts through modbench.routing.topk.counts_to_host"
    )


def _run(
    part: nn.Module, place: Place, workload: Workload, routed: Counts, rule: Selection, cached: bool
) -> tuple[Ledger, Any]:
    train = workload.phase == "train"
    cache = Cache(workload.sequences) if cached else None
    part.train(train)
    with torch.set_grad_enabled(train):
        if cache is not None and any(workload.past):
            with _routing({"depth": routed["past"]} if "past" in routed else None):
                part(*_inputs(part, place, workload, workload.past, rule, cache))
            cache.advance(workload.past)
        x_BTD, context = _inputs(part, place, workload, workload.lengths, rule, cache)
        with _routing(routed or None), FlopCounter() as counter:
            out_BTD = checked_output(part, place, part(x_BTD, context), x_BTD)
            if train:
                loss = out_BTD.sum() + context.trace.auxiliary_loss()
                if loss.requires_grad:
                    loss.backward()
    return counter.ledger, context.trace.counts


def _inputs(
    part: nn.Module,
    place: Place,
    workload: Workload,
    lengths: Sequence[int],
    rule: Selection,
    cache: Cache | None,
) -> tuple[Tensor, Context]:
    sequences, longest = len(lengths), max(lengths)
    weight = next((p for p in part.parameters() if p.is_floating_point()), torch.empty(0, device="meta"))
    x_BTD = torch.randn(
        (sequences, longest, place.width),
        dtype=weight.dtype,
        device=weight.device,
        requires_grad=workload.phase == "train" and workload.input_gradient,
    )
    context = Context(
        selection=rule,
        lengths_B=host_lengths(lengths, x_BTD.device) if min(lengths) < longest else None,
        tokens_BT=torch.zeros((sequences, longest), dtype=torch.long, device=x_BTD.device),
        cache=cache,
    )
    if cache is not None:
        context.positions_BT = cache.positions(longest, x_BTD.device)
        context.past = cache.read
    return x_BTD, context


@contextmanager
def _routing(counts: Counts | None) -> Iterator[None]:
    token = realised.set(counts)
    try:
        yield
    finally:
        realised.reset(token)
