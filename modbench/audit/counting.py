"""Probe 9: the ledger equals the FLOPs executed, in every phase.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.audit.finding import ModelSubject, Outcome, device_of, next_tokens, ragged
from modbench.counting.counter import FlopCounter, seen_conventions
from modbench.errors import several
from modbench.ledger import CONVENTIONS, Ledger, Phase, Workload
from modbench.model.context import Context, Selection
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer
from modbench.routing.build import RoutedDecoder

#: Single tokens counted one by one: a layer may skip one and select another; each takes a pass.
SINGLE_TOKENS = 2
#: New tokens of each sequence in a chunk after the prompt, unequal so that the batch is padded; and
#: tokens decoded after that: the second finds a decoded one in the cache.
CHUNK, STEPS = (4, 9), 2
#: Tokens over which FLOPs are averaged: where experts choose tokens, one token alone gets every expert.
ACTIVE_TOKENS = 512
#: Phases whose nominal FLOPs appear in budgets and tables, and their names in a figure.
PHASES: dict[Phase, str] = {"forward": "a forward pass", "train": "a training step"}
#: Differences written out in a figure; a count stands for the others.
SHOWN = 3


def count(subject: ModelSubject, tokens_BT: Tensor) -> Outcome:
    """Probe 9: with padding, the ledger equals what the counter sees, in each convention it can see:
    training, and forward under the causal rule; at the first shape also with padding, of one sequence,
    of single tokens, and with a cache. A layer has as many active parameters as FLOPs imply, or more.

    Without realised counts (nominal FLOPs of plans and tables) it equals the count of a training step
    where this routes nominal counts, else on the meta device, unless a router cannot run there. Without
    padded slots it is at most that count; equal where there are none (one sequence, or the training
    rule on full sequences); and under the causal rule the sum over single sequences."""
    first = subject.is_first(tokens_BT) and not subject.brief
    twin, full = subject.twin(), (tokens_BT.shape[1],) * len(tokens_BT)
    step = _counted("", twin, tokens_BT, full, "topk", "train")
    scored = _counted("", twin, tokens_BT, full, "causal", "forward")
    wrong = step.wrong() | scored.wrong()
    counted = 2
    others = chain(_padded_and_single(subject, tokens_BT), _each_cached(subject, tokens_BT))
    for case in others if first else ():  # one at a time: each holds a model
        wrong |= case.wrong()
        counted += 1
    nominal, unchecked = _nominal(subject, step)
    if differences := [*(wrong | nominal).values()]:
        left = len(differences) - SHOWN
        more = f", and in {several(left, 'other case')}" if left > 0 else ""
        return False, f"ledger minus counter, FLOPs: {', '.join(differences[:SHOWN])}{more}"
    if first and (too_few := _too_few_active(subject)):
        return False, too_few
    counted += 0 if unchecked else len(PHASES)
    return True, f"ledger equals counter in {several(counted, 'case')}{unchecked}"


def _nominal(subject: ModelSubject, step: "CountedPass") -> tuple[dict[str, str], str]:
    """Errors of the ledger without realised counts, by phase; and why they cannot be checked, if so.
    ``step``: a training step of full sequences."""
    model, lengths, seen = subject.model, step.workload.lengths, step.counter.ledger
    size = len(lengths), lengths[0]
    # On a GPU the counter does not see the convention ``executed``.
    on_cpu = device_of(model).type == "cpu"
    if not on_cpu or model.ledger(step.workload) != model.ledger(Workload.uniform(*size, "train")):
        try:
            tokens_BT = torch.zeros(size, dtype=torch.long, device="meta")
            on_meta = _counted("", subject.twin().to("meta"), tokens_BT, lengths, "topk", "train")
        except Exception as error:  # a router's own code runs here; it may need values
            return {}, f"; nominal not checked, on the meta device it raised {type(error).__name__}"
        seen = on_meta.counter.ledger
    wrong: dict[str, str] = {}
    forward = Ledger({key: flops for key, flops in seen if key[2] == "forward"})
    for phase, counted in zip(PHASES, (forward, seen), strict=True):
        stated = model.ledger(Workload.uniform(*size, phase))
        for convention in CONVENTIONS:
            if off := stated.total(convention) - counted.total(convention):
                wrong[phase] = f"{off:+,d} in the nominal FLOPs of {PHASES[phase]}"
    return wrong, ""


def _too_few_active(subject: ModelSubject) -> str:
    """Name the first layer with fewer active parameters than the FLOPs of a token imply, if any. A
    matmul spends 2 FLOPs per parameter and token. A layer that applies its parameters repeatedly must
    report all of them at most. Tokens are routed at every depth."""
    model = subject.model
    full = Workload.uniform(1, ACTIVE_TOKENS)
    depths = [key for key in model.nominal_counts(full) if key[1] == "depth"]
    workload = Workload(lengths=full.lengths, counts=dict.fromkeys(depths, full.lengths))
    by_layer = model.active_by_layer() if isinstance(model, RoutedDecoder) else ()
    for number, active in enumerate(by_layer):
        layer: Layer = model.layers[number]  # type: ignore[assignment]
        ledger = layer.ledger(workload)
        # Attention scores use no parameters.
        flops = sum(flops.model for (_, part, _), flops in ledger if part != "attention.scores")
        total = sum(parameter.numel() for parameter in layer.parameters())
        implied = min(flops // ACTIVE_TOKENS // 2, total)
        if active < implied:
            reports = f"layer {number} reports {active:,} active parameters"
            return f"{reports}; the FLOPs of a token imply {implied:,} or more"
    return ""


@dataclass(frozen=True)
class CountedPass:
    """One pass: its ``workload`` with realised counts, its counter, and the counters of the ``parts``
    to which its FLOPs without padding must add up (none: not known)."""

    name: str
    model: LanguageModel
    workload: Workload
    counter: FlopCounter
    parts: Sequence[FlopCounter] = ()

    def wrong(self) -> dict[str, str]:
        """The first difference of ledger and counter, by name of the pass."""
        seen, *parts = (counter.ledger for counter in (self.counter, *self.parts))
        dispatched = self.model.ledger(replace(self.workload, padding=True))
        realised = self.model.ledger(self.workload)
        needed = Ledger.sum(parts)
        for convention in seen_conventions(next(self.model.parameters()).device):
            total, of = seen.total(convention), realised.total(convention)
            if off := dispatched.total(convention) - total:
                return {self.name: f"{off:+,d} in {self.name}"}
            off = of - needed.total(convention) if parts else max(0, of - total)
            if off:
                return {self.name: f"{off:+,d} in the realised FLOPs of {self.name}"}
        return {}


def _padded_and_single(subject: ModelSubject, tokens_BT: Tensor) -> Iterator[CountedPass]:
    """Padded batches, one sequence, and single tokens."""
    twin = subject.twin()
    tokens_BT = tokens_BT[:2]
    padded = tuple(max(1, tokens_BT.shape[1] - 7 * n) for n in range(len(tokens_BT)))
    yield _counted(" with padding", twin, tokens_BT, padded, "topk", "train")
    yield _counted(" of one sequence", twin, tokens_BT[:1], padded[:1], "topk", "train")
    # A layer that skips its only token spends less, and its router gets no gradient.
    for token_BT in subject.tokens(1, SINGLE_TOKENS).split(1, 1):
        yield _counted(" of one token", twin, token_BT, (1,), "topk", "train")
        yield _counted(" of one token", twin, token_BT, (1,), "causal", "forward")
    # In float64, where a sequence is routed alike alone and in a batch.
    alone = [
        _counted(" of one sequence", subject.exact, row_T[None, :length], (length,), "causal", "forward")
        for row_T, length in zip(tokens_BT, padded, strict=True)
    ]
    yield from alone
    together = _counted(" with padding", subject.exact, tokens_BT, padded, "causal", "forward")
    yield replace(together, parts=[single.counter for single in alone])


def _counted(
    which: str,
    model: LanguageModel,
    tokens_BT: Tensor,
    lengths: tuple[int, ...],
    rule: Selection,
    phase: Phase,
) -> CountedPass:
    model.train(phase == "train")
    context = Context(selection=rule, lengths_B=ragged(lengths, tokens_BT))
    with FlopCounter() as counter, torch.set_grad_enabled(phase == "train"):
        logits_BTV = model(tokens_BT, context)
        if phase == "train":
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
            (loss + context.trace.auxiliary_loss()).backward()
            model.zero_grad(set_to_none=True)
    workload = Workload(lengths=lengths, phase=phase, counts=context.trace.counts)
    exact = len(lengths) == 1 or (rule == "topk" and min(lengths) == tokens_BT.shape[1])
    return CountedPass(f"{PHASES[phase]}{which}", model, workload, counter, (counter,) if exact else ())


def _each_cached(subject: ModelSubject, tokens_BT: Tensor) -> Iterator[CountedPass]:
    """Cached passes; with initial weights, too, if all decoded tokens are selected, or none."""
    decoded = set[bool]()
    for model in (subject.exact, subject.initial):
        for case in _cached(subject, model, tokens_BT.shape[1]):
            yield case
            depths = (counts for (_, what), counts in case.workload.counts.items() if what == "depth")
            if case.workload.phase == "decode":
                decoded |= {bool(number) for counts in depths for number in counts}
        if decoded in (set(), {False, True}):
            break


def _cached(subject: ModelSubject, model: LanguageModel, longest: int) -> Iterator[CountedPass]:
    """Prompts of different lengths, chunks and decoded tokens, in a batch and alone."""
    rows = len(CHUNK)
    prompts = tuple(max(1, longest * (n + 1) // rows) for n in range(rows))
    text_BT = subject.tokens(rows, longest + max(CHUNK) + STEPS)
    reads = (prompts, CHUNK, *[(1,) * rows] * STEPS)
    each = [slice(row, row + 1) for row in range(rows)]
    alone = [_read(model, text_BT[row], [lengths[row] for lengths in reads]) for row in each]
    for case in chain(*alone):
        yield replace(case, name=f"{case.name} of one sequence", parts=[case.counter])
    for case, *singles in zip(_read(model, text_BT, reads), *alone, strict=True):
        parts = [single.counter for single in singles]
        yield replace(case, name=f"{case.name} of each sequence of a batch", parts=parts)


@torch.no_grad()
def _read(model: LanguageModel, text_BT: Tensor, reads: Sequence[tuple[int, ...]]) -> list[CountedPass]:
    """Count cached passes; ``reads`` holds the number of new tokens of each sequence, pass by pass."""
    cache = Cache(len(text_BT))
    passes = []
    for number, lengths in enumerate(reads):
        past = tuple(cache.read)
        new_BT, lengths_B = next_tokens(text_BT, cache, lengths)
        context = Context(selection="causal", cache=cache, lengths_B=lengths_B, logits="last")
        with FlopCounter() as counter:
            model(new_BT, context)
        phase: Phase = "prefill" if number < 2 else "decode"
        name = ("a prompt", "a chunk", "a decoded token")[min(number, 2)]
        workload = Workload(lengths=lengths, past=past, phase=phase, counts=context.trace.counts)
        passes.append(CountedPass(name, model, workload, counter))
    return passes
