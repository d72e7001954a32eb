"""Text from a model, token by token through a KV cache, under the causal rule.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel


@torch.no_grad()
def prefill(
    model: LanguageModel, tokens_BT: Tensor, lengths: Sequence[int] | None = None
) -> tuple[Tensor, Cache]:
    """Read prompts, padded on the right where ``lengths`` says so. Return the logits (B, V) that follow
    each prompt's last token, and the cache to continue from."""
    sequences, tokens = tokens_BT.shape
    cache = Cache(sequences)
    return _last_logits(model, tokens_BT, lengths or [tokens] * sequences, cache), cache


@torch.no_grad()
def decode(model: LanguageModel, tokens_B: Tensor, cache: Cache) -> Tensor:
    """Read one more token of each sequence into ``cache``; return the logits (B, V) that follow it."""
    return model(tokens_B[:, None], Context(selection="causal", cache=cache))[:, 0]  # type: ignore[no-any-return]


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    new: int,
    temperature: float = 0.0,
    seed: int = 0,
    cache: Cache | None = None,
) -> list[list[int]]:
    """Return ``new`` tokens after each prompt.

    ``temperature`` 0 takes the most likely token, the first of equals; above 0, tokens are drawn from
    softmax(logits / temperature) with one generator per prompt, so that a prompt's result does not
    depend on the other prompts. ``cache``: an empty one, in which at the end everything but the last new
    tokens has been read; without it, every step reads all tokens again: the reference implementation.
    Raise a `UserError` for no prompt, an empty one, a token outside the vocabulary, or an option out of
    range.
    """
    texts = [list(prompt) for prompt in prompts]
    if not texts or not all(texts):
        raise UserError("generate needs one or more prompts of at least one token each")
    vocabulary = model.config.vocabulary
    for token in (token for text in texts for token in text):
        if not 0 <= token < vocabulary:
            raise UserError(f"token {token} is outside the vocabulary 0 to {vocabulary - 1}")
    if new < 1:
        raise UserError(f"new is {new}; it must be 1 or more")
    check_sampling(temperature, seed)
    model.eval()
    # Equal prompts get different generators.
    seeds = [(seed << 16) + texts[:number].count(text) for number, text in enumerate(texts)]
    written: list[list[int]] = [[] for _ in texts]

    def goes_on(number: int, token: int) -> bool:
        written[number].append(token)
        return len(written[number]) < new

    continue_prompts(_ModelReader(model, texts, cache), [temperature] * len(texts), seeds, goes_on)
    return written


class Reader(Protocol):
    """Reads prompts, and then one token of each at a time."""

    def start(self) -> Tensor:
        """Return the logits (B, V) that follow each prompt."""

    def advance(self, kept: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Drop all rows but ``kept``, read one of ``tokens`` in each; return the logits (B, V)."""


@torch.no_grad()
def continue_prompts(
    reader: Reader,
    temperatures: Sequence[float],
    seeds: Sequence[int],
    goes_on: Callable[[int, int], bool],
) -> None:
    """Choose a token after each prompt, give its number and the token to ``goes_on``, and continue those
    for which that returns True. ``temperatures`` and ``seeds``: of each prompt, as in `generate`. Raise
    a `UserError` for logits that are not finite."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    numbers = list(range(len(seeds)))
    logits_BV = reader.start()
    while True:
        kept, tokens = [], []
        logits_BV = logits_BV.float().cpu()  # one wait for all rows
        for row, number in enumerate(numbers):
            token = _choose(logits_BV[row], temperatures[number], generators[number])
            if goes_on(number, token):
                kept.append(row)
                tokens.append(token)
        if not kept:
            return
        numbers = [numbers[row] for row in kept]
        logits_BV = reader.advance(kept, tokens)


class _ModelReader:
    """Reads through ``cache``; without one, all tokens again. No row may end before another."""

    def __init__(self, model: LanguageModel, texts: list[list[int]], cache: Cache | None) -> None:
        self.model = model
        self.texts = texts
        self.cache = cache
        self.device = next(model.parameters()).device

    def start(self) -> Tensor:
        lengths = [len(text) for text in self.texts]
        padded = [text + [0] * (max(lengths) - len(text)) for text in self.texts]
        tokens_BT = torch.tensor(padded, device=self.device)
        return _last_logits(self.model, tokens_BT, lengths, self.cache)

    def advance(self, kept: Sequence[int], tokens: Sequence[int]) -> Tensor:
        if self.cache is not None:
            return decode(self.model, torch.tensor(tokens, device=self.device), self.cache)
        self.texts = [[*text, token] for text, token in zip(self.texts, tokens, strict=True)]
        return self.start()


def dense_cache_bytes(model: LanguageModel, tokens: int) -> int:
    """Return the cache bytes of ``tokens`` tokens that are cached in every layer."""
    return tokens * model.kv_bytes_per_token()


def check_sampling(temperature: float, seed: int) -> None:
    """Raise a `UserError` if a sampling option of `generate` is out of range."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in [0, 2**32)")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; it must be 0 or more, and finite")


def _last_logits(
    model: LanguageModel, tokens_BT: Tensor, lengths: Sequence[int], cache: Cache | None
) -> Tensor:
    """Return the logits (B, V) that follow each row's last token."""
    padded = min(lengths) < tokens_BT.shape[1]
    lengths_B = torch.tensor(list(lengths), device=tokens_BT.device) if padded else None
    context = Context(selection="causal", cache=cache, lengths_B=lengths_B, logits="last")
    return model(tokens_BT, context)[:, 0]  # type: ignore[no-any-return]


def _choose(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if not logits_V.isfinite().all():
        raise UserError("logits contain NaN or Inf; the checkpoint has diverged, train it again")
    if temperature == 0:
        return int(logits_V.argmax())
    # In float64, relative to the largest, so that no temperature above 0 overflows.
    probabilities_V = ((logits_V.double() - logits_V.max()) / temperature).softmax(-1)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))
