"""Text from a model, token by token through a cache, under the causal rule.

B sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.context import Context
from modbench.model.decode_graphs import DecodeGraphs
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache


@torch.no_grad()
def prefill(
    model: Decoder,
    tokens_BT: Tensor,
    lengths: Sequence[int] | None = None,
    *,
    graphs: DecodeGraphs | None = None,
) -> tuple[Tensor, Cache]:
    """Read prompts, padded on the right where ``lengths`` says so: the logits (B, V) that follow each
    prompt's last token, and the cache to go on from; with ``graphs``
    (`modbench.model.decode_graphs.cuda_graphs`), by replaying what blocks do with a token.

    Raises:
        UserError: no tokens, tokens out of the vocabulary, or lengths that are none of the prompts'.
    """
    _check_tokens(model, tokens_BT, ("B", "T"))
    sequences, tokens = tokens_BT.shape
    cache = Cache(sequences, graphs)
    lengths = [tokens] * sequences if lengths is None else _checked_lengths(lengths, sequences, tokens)
    return _last_logits(model, tokens_BT, lengths, cache), cache


@torch.no_grad()
def decode(model: Decoder, tokens_B: Tensor, cache: Cache) -> Tensor:
    """One more token of each sequence: the logits (B, V) that follow it. ``cache`` grows by it.

    Raises:
        UserError: no tokens, tokens out of the vocabulary, or a cache of other sequences or of another
            model.
    """
    _check_tokens(model, tokens_B, ("B",))
    if not isinstance(cache, Cache):
        raise UserError(f"cache is {cache!r}; it must be the one that `prefill` gave")
    return model(tokens_B[:, None], Context(selection="causal", cache=cache))[:, 0]  # type: ignore[no-any-return]


def _last_logits(model: Decoder, tokens_BT: Tensor, lengths: list[int], cache: Cache | None) -> Tensor:
    """The logits (B, V) that follow each row's last token."""
    ragged = min(lengths) < tokens_BT.shape[1]
    lengths_B = torch.tensor(lengths, device=tokens_BT.device) if ragged else None
    context = Context(selection="causal", cache=cache, lengths_B=lengths_B, logits="last")
    return model(tokens_BT, context)[:, 0]  # type: ignore[no-any-return]


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    new: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    end: int | None = None,
    cached: bool = True,
    graphs: DecodeGraphs | None = None,
    inspect: Callable[[Cache], None] | None = None,
) -> list[list[int]]:
    """``new`` tokens after each prompt, fewer where ``end`` comes (it is not part of what is returned).

    ``temperature`` 0 takes the likeliest token, the first of equals; above, tokens are drawn from
    softmax(logits / temperature) with a generator to each prompt, so that what a prompt gives does not
    depend on its neighbours. ``top_p`` keeps the likeliest tokens whose probabilities
    first sum to at least that (nucleus sampling, Holtzman et al. 2020). ``cached`` false has no cache
    and reads all tokens again at each step: the plain twin, to be compared with. ``graphs``: as in
    `prefill`. ``inspect`` is shown the cache once, as the last step left it: all prompts and all new
    tokens but the last ones have been read.

    Raises:
        UserError: no prompt, an empty one, a token out of the vocabulary, or an option out of range.
    """
    prompts = _listed(prompts)
    _check(model, prompts, new, temperature, top_p, seed, end)
    if graphs is not None and not cached:
        raise UserError("graphs need a cache; leave cached true, or graphs out")
    on = next(model.parameters()).device
    model.eval()
    texts = [[index(token) for token in prompt] for prompt in prompts]
    generators = [_generator(index(seed), texts, number) for number in range(len(texts))]
    running = set(range(len(texts)))
    cache = Cache(len(texts), graphs) if cached else None
    chosen: list[int] = []
    for _ in range(index(new)):
        if chosen and cache is not None:
            logits_BV = decode(model, torch.tensor(chosen, device=on), cache)
        else:
            longest = max(map(len, texts))
            padded = [text + [0] * (longest - len(text)) for text in texts]
            lengths = [len(text) for text in texts]
            logits_BV = _last_logits(model, torch.tensor(padded, device=on), lengths, cache)
        chosen = [
            _choose(logits_V, temperature, top_p, generator)
            for logits_V, generator in zip(logits_BV.float().cpu(), generators, strict=True)
        ]
        for row, token in enumerate(chosen):
            texts[row].append(token)
            if token == end:
                running.discard(row)
        if not running:
            break
    if inspect is not None and cache is not None:
        inspect(cache)
    return [_until(text[len(prompt) :], end) for text, prompt in zip(texts, prompts, strict=True)]


def dense_cache_bytes(model: Decoder, tokens: int) -> int:
    """What the cache of so many tokens takes if each of them leaves its keys and values in every layer,
    as in the dense decoder of the model's shape."""
    config, weight = model.config, next(model.parameters())
    return tokens * config.layers * 2 * config.key_heads * config.head_width * weight.element_size()


def _generator(seed: int, prompts: list[list[int]], number: int) -> torch.Generator:
    """Of a prompt's own: the second of two equal prompts draws other tokens than the first."""
    earlier = prompts[:number].count(prompts[number])
    return torch.Generator().manual_seed((seed << 16) + earlier)


def _until(tokens: list[int], end: int | None) -> list[int]:
    return tokens[: tokens.index(end)] if end is not None and end in tokens else tokens


def _choose(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if not logits_V.isfinite().all():
        raise UserError("the model's logits are no numbers; its weights are broken, train it again")
    if temperature == 0:
        return int(logits_V.argmax())
    # In float64 and from the largest down, so that no temperature above 0 overflows.
    probabilities_V = ((logits_V.double() - logits_V.max()) / temperature).softmax(-1)
    order_V = probabilities_V.argsort(descending=True, stable=True)
    sorted_V = probabilities_V[order_V]
    # A token stays as long as those before it don't reach top_p; the first always does.
    outside_V = sorted_V.cumsum(-1) - sorted_V >= top_p
    outside_V[0] = False
    drawn = torch.multinomial(sorted_V.masked_fill(outside_V, 0.0), 1, generator=generator)
    return int(order_V[drawn])


def _listed(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    try:
        return [list(prompt) for prompt in prompts]
    except TypeError as error:
        raise UserError(
            f"prompts is {prompts!r}; it must be lists of tokens, such as [[3, 1], [4]]"
        ) from error


def _check(
    model: Decoder,
    prompts: list[list[int]],
    new: int,
    temperature: float,
    top_p: float,
    seed: int,
    end: int | None,
) -> None:
    if not prompts or not all(prompts):
        raise UserError("generate needs one or more prompts of at least one token each")
    for token in [token for prompt in prompts for token in prompt]:
        if not _in_vocabulary(model, token):
            raise UserError(f"prompt has token {token!r}; the vocabulary has {_span(model)}")
    if end is not None and not _in_vocabulary(model, end):
        raise UserError(f"end is {end!r}; the vocabulary has {_span(model)}")
    if not _whole(new) or new < 1:
        raise UserError(f"new is {new!r}; it must be a whole number, 1 or more")
    check_drawing(temperature, top_p, seed)


def check_drawing(temperature: float, top_p: float, seed: int) -> None:
    """How `generate` draws.

    Raises:
        UserError: one of them is out of range, with the value and what would be right.
    """
    if not _whole(seed) or not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed!r}; it must be a whole number in [0, 2**32)")
    if not _number(temperature) or not 0 <= temperature < float("inf"):
        raise UserError(f"temperature is {temperature!r}; it must be 0 or more, and finite")
    if not _number(top_p) or not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p!r}; it must lie in (0, 1]")


def _in_vocabulary(model: Decoder, token: SupportsIndex) -> bool:
    return _whole(token) and 0 <= index(token) < model.config.vocabulary


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(number: object) -> bool:
    if isinstance(number, bool):
        return False
    try:
        index(number)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _span(model: Decoder) -> str:
    return f"0 to {model.config.vocabulary - 1}"


def _check_tokens(model: Decoder, tokens: Tensor, shape: tuple[str, ...]) -> None:
    if not isinstance(tokens, Tensor):
        raise UserError(f"tokens is {tokens!r}; it must be a tensor ({', '.join(shape)})")
    if tokens.dim() != len(shape) or not tokens.numel():
        raise UserError(
            f"tokens are of shape {tuple(tokens.shape)}; give ({', '.join(shape)}), one token or more"
        )
    if tokens.dtype not in (torch.int32, torch.int64):
        raise UserError(f"tokens are {tokens.dtype}; they must be int32 or int64")
    # Only where values are at hand: a GPU would be waited for, and shapes alone have none.
    if tokens.device.type == "cpu" and type(tokens) is Tensor:
        for token in (int(tokens.min()), int(tokens.max())):
            if not _in_vocabulary(model, token):
                raise UserError(f"tokens have {token}; the vocabulary has {_span(model)}")


def _checked_lengths(lengths: Iterable[Any], sequences: int, tokens: int) -> list[int]:
    try:
        lengths = list(lengths)
    except TypeError as error:
        raise UserError(
            f"lengths is {lengths!r}; it must be whole numbers, one of each prompt"
        ) from error
    if len(lengths) != sequences:
        raise UserError(f"there are {len(lengths)} lengths of {sequences} prompts; give one of each")
    for length in lengths:
        if not _whole(length) or not 1 <= length <= tokens:
            raise UserError(
                f"a prompt's length is {length!r}; it must be a whole number from 1 to {tokens}, the "
                "tokens that each row has"
            )
    return list(map(index, lengths))
