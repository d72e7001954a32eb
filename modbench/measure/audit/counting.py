"""Probe 9: the count is what is executed, in every phase.

B sequences, T tokens, V vocabulary.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.accounting.count import count as executed
from modbench.counting.counter import FlopCounter, seen_conventions
from modbench.ledger import CONVENTIONS, Phase, Workload
from modbench.measure.audit.finding import Outcome, Subject
from modbench.model.context import Context, Selection
from modbench.model.kv_cache import Cache
from modbench.routing.build import RoutedDecoder

#: Tokens that are counted one by one.
LONE = 4
#: New tokens of each sequence that are read at once onto a filled cache, and those then decoded.
CHUNK, STEPS = (4, 9, 2), 4
#: Whose nominal FLOPs are in budgets and tables.
PHASES: tuple[Phase, ...] = ("forward", "train")


def count(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 9: the closed form with padding equals what the counter sees, in all conventions that can
    be seen there: forward under both rules and training, with and without padding, one sequence alone
    and single tokens; and through a cache, prompts, several tokens onto what is kept, and token by
    token, of sequences of different lengths and of each alone.

    Without counts, as plans and the table's nominal FLOPs are reckoned, it equals what is executed on
    the meta device, where routers have no scores to go by; a router that doesn't run there isn't asked.

    Without padded slots it must come to no more than that, for that form sets the budget and fills the
    table; to the same where there are none (one sequence, or the training rule on full ones); and under
    the causal rule to what the sequences cost one by one.
    """
    wrong: dict[str, str] = {}
    cases = 0
    decoded: set[bool] = set()
    for case in _uncached(subject, tokens_BT):
        cases += 1
        wrong |= case.wrong()
    for model in (subject.exact, subject.fresh()[0].double().eval()):
        for case in _cached(subject, model, tokens_BT.shape[1]):
            cases += 1
            wrong |= case.wrong()
            if case.workload.phase == "decode":
                decoded |= case.entered()
        if decoded in (set(), {False, True}):
            break  # first weights are asked where all decoded tokens enter, or none does
    nominal, unasked = _nominal(subject, tokens_BT)
    wrong |= nominal
    cases += 0 if unasked else len(PHASES)
    if wrong:
        return False, f"ledger minus counter, FLOPs: {', '.join(wrong.values())}"
    return True, f"ledger equals counter in {cases} cases{unasked}"


def _nominal(subject: Subject, tokens_BT: Tensor) -> tuple[dict[str, str], str]:
    """What is off of a form without counts, by the phase; and if nobody can tell, why."""
    wrong: dict[str, str] = {}
    model, (sequences, tokens) = subject.twin().to("meta"), tokens_BT.shape
    for phase in PHASES:
        workload = Workload.uniform(sequences, tokens, phase)
        try:
            seen = executed(model, (sequences, tokens), phase=phase).ledger
        except Exception as error:  # a router's own code runs here: it needs values
            return wrong, f"; nominal not asked, on the meta device it raised {type(error).__name__}"
        for convention in CONVENTIONS:
            off = model.ledger(workload).total(convention) - seen.total(convention)
            if off:
                wrong[phase] = f"{off:+d} in nominal {phase}"
    return wrong, ""


@dataclass(frozen=True)
class Case:
    """One pass: its ``workload`` with the counts that it realised, what the counter saw of it, and the
    counters of the passes that its FLOPs without padding add up to; none where nobody knows."""

    name: str
    model: RoutedDecoder
    workload: Workload
    counter: FlopCounter
    parts: Sequence[FlopCounter] = ()

    def wrong(self) -> dict[str, str]:
        """What is off, by the pass."""
        for convention in seen_conventions(next(self.model.parameters()).device):
            seen = self.counter.under(convention)
            dispatched = self.model.ledger(replace(self.workload, padding=True)).total(convention)
            if dispatched != seen:
                return {self.name: f"{dispatched - seen:+d} in {self.name}"}
            realised = self.model.ledger(self.workload).total(convention)
            needed = sum(part.under(convention) for part in self.parts) if self.parts else realised
            if realised > seen or realised != needed:
                off = realised - (needed if self.parts else seen)
                return {self.name: f"{off:+d} in {self.name} without padding"}
        return {}

    def entered(self) -> set[bool]:
        """Whether somebody, and whether nobody, entered a layer that tokens skip."""
        depths = (counts for (_, what), counts in self.workload.counts.items() if what == "depth")
        return {bool(number) for counts in depths for number in counts}


def _uncached(subject: Subject, tokens_BT: Tensor) -> Iterator[Case]:
    sequences, sequence = tokens_BT.shape
    full = (sequence,) * sequences
    padded = tuple(max(1, sequence - 7 * n) for n in range(sequences))
    passes: tuple[tuple[Selection, Phase], ...] = (
        ("topk", "forward"),
        ("topk", "train"),
        ("causal", "forward"),  # nothing trains under the causal rule
    )
    shapes = [("", tokens_BT, full), ("padded ", tokens_BT, padded)]
    shapes.append(("lone ", tokens_BT[:1], full[:1]))
    # One token either enters a layer or doesn't: a layer that nobody enters spends less, and hands its
    # router no gradient.
    shapes += [("single-token ", token_BT, (1,)) for token_BT in subject.tokens(1, LONE).split(1, 1)]
    for (which, text_BT, lengths), (rule, phase) in itertools.product(shapes, passes):
        workload, counter = _spend(subject.twin(), text_BT, lengths, rule, phase)
        exact = len(lengths) == 1 or (rule == "topk" and lengths == full)
        parts = (counter,) if exact else ()
        yield Case(f"{which}{rule} {phase}", subject.model, workload, counter, parts)
    # In float64, where a sequence alone enters what it enters in a batch.
    for which, text_BT, lengths in shapes[:2]:
        workload, counter = _spend(subject.exact, text_BT, lengths, "causal", "forward")
        alone = [
            _spend(subject.exact, row_T[None, :length], (length,), "causal", "forward")[1]
            for row_T, length in zip(text_BT, lengths, strict=True)
        ]
        yield Case(f"{which}causal forward, summed,", subject.exact, workload, counter, alone)


def _spend(
    model: RoutedDecoder, tokens_BT: Tensor, lengths: tuple[int, ...], rule: Selection, phase: Phase
) -> tuple[Workload, FlopCounter]:
    model.train(phase == "train")
    context = Context(selection=rule, lengths_B=_lengths(tokens_BT, lengths))
    with FlopCounter() as counter, torch.set_grad_enabled(phase == "train"):
        logits_BTV = model(tokens_BT, context)
        if phase == "train":
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
            (loss + context.trace.auxiliary_loss()).backward()
    return Workload(lengths=lengths, phase=phase, counts=context.trace.counts), counter


def _cached(subject: Subject, model: RoutedDecoder, longest: int) -> Iterator[Case]:
    """Prompts of different lengths, more of each, and single tokens, in a batch and alone."""
    rows = len(CHUNK)
    prompts = tuple(max(1, longest * (n + 1) // rows) for n in range(rows))
    text_BT = subject.tokens(rows, longest + max(CHUNK) + STEPS)
    reads = (prompts, CHUNK, *[(1,) * rows] * STEPS)
    alone = [
        _read(model, text_BT[row : row + 1], [lengths[row : row + 1] for lengths in reads])
        for row in range(rows)
    ]
    for one in alone:
        for name, workload, counter in one:
            yield Case(f"lone {name}", model, workload, counter, (counter,))
    together = _read(model, text_BT, reads)
    for (name, workload, counter), *ones in zip(together, *alone, strict=True):
        yield Case(name, model, workload, counter, [of_one for _, _, of_one in ones])


@torch.no_grad()
def _read(
    model: RoutedDecoder, text_BT: Tensor, reads: Sequence[tuple[int, ...]]
) -> list[tuple[str, Workload, FlopCounter]]:
    """``reads``: new tokens of each sequence, one pass through the cache after the other."""
    cache, found = Cache(len(text_BT)), []
    for number, lengths in enumerate(reads):
        past = tuple(cache.read)
        first_B1 = torch.tensor(past, device=text_BT.device)[:, None]
        places_BT = first_B1 + torch.arange(max(lengths), device=text_BT.device)
        new_BT = text_BT.gather(1, places_BT.clamp(max=text_BT.shape[1] - 1))
        context = Context(
            selection="causal", cache=cache, lengths_B=_lengths(new_BT, lengths), logits="last"
        )
        with FlopCounter() as counter:
            model(new_BT, context)
        phase: Phase = "prefill" if number < 2 else "decode"
        workload = Workload(lengths=lengths, past=past, phase=phase, counts=context.trace.counts)
        found.append((("prompt", "chunk", "decoded token")[min(number, 2)], workload, counter))
    return found


def _lengths(tokens_BT: Tensor, lengths: tuple[int, ...]) -> Tensor | None:
    ragged = min(lengths) < tokens_BT.shape[1]
    return torch.tensor(lengths, device=tokens_BT.device) if ragged else None
