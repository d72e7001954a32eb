"""Text from a model, token by token through a KV cache, under the causal rule.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache


@torch.no_grad()
def prefill(
    model: Decoder, tokens_BT: Tensor, lengths: Sequence[int] | None = None
) -> tuple[Tensor, Cache]:
    """Read prompts, padded on the right where ``lengths`` says so. Return the logits (B, V) that follow
    each prompt's last token, and the cache to continue from."""
    sequences, tokens = tokens_BT.shape
    cache = Cache(sequences)
    return _last_logits(model, tokens_BT, lengths or [tokens] * sequences, cache), cache


@torch.no_grad()
def decode(model: Decoder, tokens_B: Tensor, cache: Cache) -> Tensor:
    """Read one more token of each sequence into ``cache``; return the logits (B, V) that follow it."""
    return model(tokens_B[:, None], Context(selection="causal", cache=cache))[:, 0]  # type: ignore[no-any-return]


@torch.no_grad()
def generate(
    model: Decoder,
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
    on = next(model.parameters()).device
    # Equal prompts get different generators.
    seeds = [(seed << 16) + texts[:number].count(text) for number, text in enumerate(texts)]
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    chosen: list[int] = []
    for _ in range(new):
        if chosen and cache is not None:
            logits_BV = decode(model, torch.tensor(chosen, device=on), cache)
        else:
            longest = max(map(len, texts))
            padded = [text + [0] * (longest - len(text)) for text in texts]
            lengths = [len(text) for text in texts]
            logits_BV = _last_logits(model, torch.tensor(padded, device=on), lengths, cache)
        chosen = [
            _choose(logits_V, temperature, generator)
            for logits_V, generator in zip(logits_BV.float().cpu(), generators, strict=True)
        ]
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
    return [text[-new:] for text in texts]


def dense_cache_bytes(model: Decoder, tokens: int) -> int:
    """Return the cache bytes of ``tokens`` tokens that are cached in every layer, as in the dense
    decoder of the model's shape."""
    config, weight = model.config, next(model.parameters())
    return tokens * config.layers * 2 * config.key_heads * config.head_width * weight.element_size()


def check_sampling(temperature: float, seed: int) -> None:
    """Raise a `UserError` if a sampling option of `generate` is out of range."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in [0, 2**32)")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; it must be 0 or more, and finite")


def _last_logits(
    model: Decoder, tokens_BT: Tensor, lengths: Sequence[int], cache: Cache | None
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
