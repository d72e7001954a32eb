"""Text that a model continues a context with, up to a stop string, through the KV cache.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from modbench.errors import UserError
from modbench.evaluate.scoring_passes import ScoringPasses
from modbench.model.decoder import Decoder
from modbench.model.generate import continue_prompts

#: lm-eval's options of a generation.
Options = Mapping[str, Any]
#: Prompts per forward pass of batch size "auto"; more take more memory.
AUTO_PROMPTS = 16
#: New tokens where a task says nothing, as in lm-eval.
NEW_TOKENS = 256


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


def _continued(
    passes: ScoringPasses,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Options],
    most: Sequence[int],
) -> list[str]:
    """Continue a batch of prompts token by token; sequences that have ended are read no further."""
    stops = [_stop_strings(asked) for asked in options]
    written: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)

    def goes_on(number: int, token: int) -> bool:
        if token == tokenizer.end_of_text:
            return False
        written[number].append(token)
        texts[number], ended = _cut(tokenizer.decode(written[number]), stops[number])
        return not ended and len(written[number]) < most[number]

    temperatures = [_temperature(asked) for asked in options]
    continue_prompts(_Reader(passes, prompts), temperatures, [0] * len(prompts), goes_on)
    return texts


class _Reader:
    """Reads prompts and then one token at a time: through the cache of a `Decoder`; all tokens again for
    another model."""

    def __init__(self, passes: ScoringPasses, prompts: Sequence[Sequence[int]]) -> None:
        self.passes = passes
        self.read = [list(prompt) for prompt in prompts]

    def start(self) -> Tensor:
        """Return the logits (B, V) after each prompt."""
        if not isinstance(self.passes.model, Decoder):
            return self._again()
        logits_BV, self.cache = self.passes.prefill([tuple(prompt) for prompt in self.read])
        return logits_BV

    def advance(self, kept: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Drop all sequences but ``kept``, read one of ``tokens`` of each, return the logits (B, V)."""
        self.read = [[*self.read[row], token] for row, token in zip(kept, tokens, strict=True)]
        if not isinstance(self.passes.model, Decoder):
            return self._again()
        if len(kept) < self.cache.sequences:
            self.cache = self.cache.select(kept)
        places = [(row, 0) for row in range(len(kept))]
        return self.passes.extend(self.cache, [(token,) for token in tokens], places)

    def _again(self) -> Tensor:
        places = [(row, len(tokens) - 1) for row, tokens in enumerate(self.read)]
        return self.passes.whole([tuple(tokens) for tokens in self.read], places)


def _temperature(options: Options) -> float:
    return float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0


def _stop_strings(options: Options) -> list[str]:
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return ``text`` before the first stop string, and True if there is one."""
    starts = [start for stop in stops if (start := text.find(stop)) >= 0]
    return (text[: min(starts)], True) if starts else (text, False)
