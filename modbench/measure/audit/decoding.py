"""Probe 3: decoding with a cache gives the logits of the full forward pass.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modbench.measure.audit.cached_reading import Parity, Pass, Reading, in_turns
from modbench.measure.audit.finding import COARSE, ROUNDING, Outcome, Subject
from modbench.model.context import Logits

#: Tokens of each sequence of a batch that are decoded one by one, after a chunk of at most `CHUNK`.
DECODED, CHUNK = 16, 5
#: Tokens of the prompt of a sequence decoded alone, and the least number read after it.
PROMPT, LONG = 8, 200
#: Number of these that are decoded one by one at first; then chunks and single tokens alternate.
SINGLE, SKIP, PAIR = 16, 12, 2
#: Tokens that are read, dropped by rewinding the cache, and read again.
DRAFT = 3
#: Passes of another batch that is read in turns with the first.
TURNS = 8
#: In the model's own dtype, where rounding may flip a decision, this fraction of the tokens may differ.
TOLERATED = 0.5


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Uses of a cache that a test of decoding covers in addition to reading one text: take turns
    between two caches, rewind a cache and read the same tokens again, ask a prompt for its last logits
    only."""

    turns: bool = False
    rewinds: bool = False
    last: bool = False


ADVICE = "keep no state of decoding on the module, only keys and values in context.cache"
#: Each usage alone, and what a router that fails with it only has to do.
USAGES = {
    f"where two caches are read in turns; {ADVICE}": Usage(turns=True),
    f"after the cache is rewound; {ADVICE}": Usage(rewinds=True),
    'after a prompt with logits="last", as generate reads it; cache all of a prompt': Usage(last=True),
}


@torch.no_grad()
def decode_parity(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 3: cached passes give the logits of the full causal pass. Tested on a batch (padded prompts
    of different lengths, then a chunk, then one token at a time) and, at the longest shape, on one
    sequence of 200 tokens or its length. At the first shape, another batch is read in turns with it. The
    batch's prompts are read with all logits, dropped by rewinding the cache, and read again with
    ``logits="last"`` as `modbench.model.generate` does; later tokens are dropped and read again, too.

    A layer that shows ``selected`` must cache as many keys as it selects tokens; others are judged by
    their logits alone. If all decoded tokens are selected, or none, initial weights are tested too:
    otherwise a decoding that always or never selects would pass. All this holds in float64, and for
    most tokens of one of two texts in the model's own dtype."""
    turns = subject.is_first(tokens_BT)
    found = _read(subject, tokens_BT, Usage(turns=turns, rewinds=True, last=True))
    together, *alone = found
    figure = together.figure
    if together.passed() and together.of and together.selected in (0, together.of):
        initial = Reading(subject.initial, tokens_BT[:4], _batch(tokens_BT[:4], Usage()), ROUNDING)
        (together,) = in_turns([initial])
        figure = f"{together.figure}, with initial weights"
        if not together.passed():
            return False, figure
    if not all(parity.passed() for parity in found):
        return False, _explained(subject, tokens_BT, found)
    figure += "".join(f"; {parity.figure}" for parity in alone)
    if subject.is_exact:
        return True, figure
    for draw, text_BT in enumerate(subject.texts(tokens_BT)):
        readings = [Reading(subject.own, text_BT[:4], _batch(text_BT[:4], Usage()), COARSE)]
        if subject.is_longest(tokens_BT):
            steps = [Pass([1])] * SINGLE
            one_1T = subject.tokens(1, PROMPT + CHUNK + len(steps), draw)
            passes = [Pass([PROMPT]), Pass([CHUNK]), *steps]
            readings.append(Reading(subject.own, one_1T, passes, COARSE))
        own = [parity for reading in readings for parity in in_turns([reading])]
        wrong = [parity for parity in own if not parity.passed(TOLERATED)]
        if not wrong:
            break
    if wrong:
        return False, f"{figure}; in {subject.dtype} only {wrong[0].figure}"
    return True, f"{figure}; in {subject.dtype} by {max(parity.most for parity in own):.1e}"


def _read(subject: Subject, tokens_BT: Tensor, usage: Usage) -> list[Parity]:
    """Read a batch and, at the longest shape, a sequence alone, in float64."""
    batch_BT = tokens_BT[:4]
    readings = [Reading(subject.exact, batch_BT, _batch(batch_BT, usage), ROUNDING)]
    if usage.turns:
        other_BT = subject.tokens(len(batch_BT), batch_BT.shape[1], draw=2)
        readings.append(Reading(subject.exact, other_BT, _batch(other_BT, Usage())[:TURNS], ROUNDING))
    found = in_turns(readings)[:1]
    if subject.is_longest(tokens_BT):
        steps = max(LONG, tokens_BT.shape[1] - PROMPT - CHUNK)
        text_1T = subject.tokens(1, PROMPT + CHUNK + steps)
        prompt = Pass([PROMPT], "last" if usage.last else "all")
        passes = [prompt, Pass([CHUNK]), *map(Pass, _bursts(steps))]
        found += in_turns([Reading(subject.exact, text_1T, passes, ROUNDING)])
    return found


def _explained(subject: Subject, tokens_BT: Tensor, found: list[Parity]) -> str:
    """The figure of a failure; where plain decoding is right, with the usage that is not."""
    plain = _read(subject, tokens_BT, Usage())
    if all(parity.passed() for parity in plain):
        for said, usage in USAGES.items():
            again = _read(subject, tokens_BT, usage)
            wrong = [parity for parity in again if not parity.passed()]
            if wrong:
                return f"{wrong[0].figure}, {said}"
        plain = found
    together, *alone = plain
    if not together.passed():
        return together.figure
    return f"{together.figure}; alone, {alone[0].figure}"


def _batch(tokens_BT: Tensor, usage: Usage) -> list[Pass]:
    """Passes of a batch whose sequences are at different positions."""
    sequences, sequence = tokens_BT.shape
    steps = min(DECODED, sequence - 1)
    more = min(CHUNK, sequence - 1 - steps)
    longest = sequence - steps - more
    prompts = [1 + (longest - 1) * (n + 1) // sequences for n in range(sequences)]
    chunks = [max(1, more - n) for n in range(sequences)] if more else []
    logits: Logits = "last" if usage.last else "all"
    passes = [Pass(prompts, logits), *([Pass(chunks)] if chunks else [])]
    passes += [Pass([1] * sequences)] * steps
    if not usage.rewinds:
        return passes
    if steps:
        draft = Pass([min(DRAFT, steps - steps // 2)] * sequences, kept=False)
        passes.insert(len(passes) - steps + steps // 2, draft)
    return [replace(passes[0], logits="all", kept=False), *passes]


def _bursts(steps: int) -> Iterator[list[int]]:
    """Numbers of tokens of each pass after the prompt: single tokens, in between chunks, which are
    cheaper; the last tokens are single."""
    singles = min(SINGLE, steps)
    yield from [[1]] * singles
    steps -= singles
    while steps >= SKIP + 2 * PAIR:
        yield [SKIP]
        yield from [[1]] * PAIR
        steps -= SKIP + PAIR
    yield from [[1]] * steps
