"""Text that a model continues a context with, up to a stop string, through the KV cache.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.evaluate.scoring_passes import ScoringPasses
from modbench.model.decoder import Decoder

#: lm-eval's options of a generation.
Options = Mapping[str, Any]
#: Prompts per forward pass of batch size "auto", and new tokens where a task says nothing.
AUTO_PROMPTS, NEW_TOKENS = 16, 256


def new_tokens(options: Options, sequence: int) -> int:
    """Return the most tokens to generate: those that ``options`` ask for, up to half of ``sequence``."""
    asked = int(options.get("max_gen_toks", options.get("max_new_tokens", NEW_TOKENS)))
    return max(1, min(asked, sequence // 2))


def generate_texts(
    passes: ScoringPasses,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Options],
    *,
    new: Sequence[int],
    batch: int,
) -> list[str]:
    """Return what follows each of ``prompts``: greedily, or drawn with a generator of its own where the
    options say ``do_sample`` with a ``temperature`` above 0. A text ends before the first stop string of
    ``until``, at an end-of-text token, or after ``new`` tokens.

    Raise a `UserError` for the training rule, which needs tokens that are not there yet."""
    if passes.rule != "causal":
        raise UserError("a task that generates text needs the causal rule; leave --rule topk out")
    texts = [""] * len(prompts)
    ordered = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number]), prompts[number]))
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        continued = _continued(
            passes,
            tokenizer,
            [prompts[number] for number in part],
            [options[number] for number in part],
            [new[number] for number in part],
        )
        for number, text in zip(part, continued, strict=True):
            texts[number] = text
    return texts


@torch.no_grad()
def _continued(
    passes: ScoringPasses,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Options],
    most: Sequence[int],
) -> list[str]:
    """Continue a batch of prompts token by token; sequences that have ended are read no further."""
    stops = [_stop_strings(one) for one in options]
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    written: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    rows = list(range(len(prompts)))
    reader = _Reader(passes, prompts)
    logits_BV = reader.start()
    while True:
        kept = []
        for place, row in enumerate(rows):
            token = _next(logits_BV[place].float().cpu(), options[row], generators[row])
            ended = token == tokenizer.end_of_text
            if not ended:
                written[row].append(token)
                texts[row], ended = _cut(tokenizer.decode(written[row]), stops[row])
            if not ended and len(written[row]) < most[row]:
                kept.append(place)
        rows = [rows[place] for place in kept]
        if not rows:
            return texts
        logits_BV = reader.advance(kept, [written[row][-1] for row in rows])


class _Reader:
    """Reads prompts and then one token at a time: through the cache of a `Decoder`; all tokens again for
    another model."""

    def __init__(self, passes: ScoringPasses, prompts: Sequence[Sequence[int]]) -> None:
        self.passes, self.read = passes, [list(prompt) for prompt in prompts]

    def start(self) -> Tensor:
        """Return the logits (B, V) after each prompt."""
        if not isinstance(self.passes.model, Decoder):
            return self._again()
        logits_BV, self.cache = self.passes.prefill([tuple(prompt) for prompt in self.read])
        return logits_BV

    def advance(self, kept: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Drop all sequences but ``kept``, read one of ``tokens`` of each, return the logits (B, V)."""
        self.read = [[*self.read[place], token] for place, token in zip(kept, tokens, strict=True)]
        if not isinstance(self.passes.model, Decoder):
            return self._again()
        if len(kept) < self.cache.sequences:
            self.cache = self.cache.select(kept)
        places = [(row, 0) for row in range(len(kept))]
        return self.passes.extend(self.cache, [(token,) for token in tokens], places)

    def _again(self) -> Tensor:
        places = [(row, len(tokens) - 1) for row, tokens in enumerate(self.read)]
        return self.passes.whole([tuple(tokens) for tokens in self.read], places)


def _next(logits_V: Tensor, options: Options, generator: torch.Generator) -> int:
    temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
    if not logits_V.isfinite().all():
        raise UserError("logits contain NaN or Inf; the checkpoint has diverged, train it again")
    if temperature == 0.0:
        return int(logits_V.argmax())
    return int(torch.multinomial((logits_V.double() / temperature).softmax(-1), 1, generator=generator))


def _stop_strings(options: Options) -> list[str]:
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return ``text`` before the first stop string, and True if there is one."""
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)
