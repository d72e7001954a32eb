"""Decoding through a cache equals the full causal forward pass; what a skipped token leaves is nothing.

B sequences, T tokens, V vocabulary.
"""

import pytest
import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SCHEMES: dict[str, tuple[str, dict]] = {
    "vanilla": ("vanilla", {}),
    "expert_choice": ("expert_choice", {}),
    "mod": ("mod", {"capacity": 0.4}),
}


def warmed(shape: ModelConfig, scheme: str) -> Decoder:
    """A model whose averages were moved and whose causal rule lets some in and some not."""
    name, options = SCHEMES[scheme]
    model = build_model(shape, build_router(name, options)).train()
    model(torch.randint(shape.vocabulary, (2, 64)), Context())
    return model.eval()


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_ragged_prompts_go_on_where_each_of_them_ended(scheme: str, shape: ModelConfig) -> None:
    model = warmed(shape, scheme)
    tokens_BT = torch.randint(shape.vocabulary, (3, 60))
    lengths = [31, 1, 17]
    cache = Cache(3)
    context = Context(selection="causal", cache=cache, lengths_B=torch.tensor(lengths), logits="last")
    last_B1V = model(tokens_BT[:, :31], context)
    # Then some tokens at once, not as many of each, then one at a time.
    more = [5, 9, 2]
    chunk_BT = torch.stack([tokens_BT[b, n : n + 9] for b, n in enumerate(lengths)])
    chunk_BTV = model(chunk_BT, Context(selection="causal", cache=cache, lengths_B=torch.tensor(more)))
    read = [n + m for n, m in zip(lengths, more, strict=True)]
    assert cache.read == read
    step_B1 = torch.stack([tokens_BT[b, n : n + 1] for b, n in enumerate(read)])
    step_B1V = model(step_B1, Context(selection="causal", cache=cache))
    for b in range(3):
        alone_TV = model(tokens_BT[b : b + 1, : read[b] + 1], Context(selection="causal"))[0]
        assert close(last_B1V[b, 0], alone_TV[lengths[b] - 1])
        assert close(chunk_BTV[b, : more[b]], alone_TV[lengths[b] : read[b]])
        assert close(step_B1V[b, 0], alone_TV[read[b]])


@torch.no_grad()
def test_sequences_of_one_length_are_decoded_without_numbers_of_the_host(
    shape: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU would be waited for, token by token."""
    model, cache = warmed(shape, "vanilla"), Cache(3)
    tokens_BT = torch.randint(shape.vocabulary, (3, 9))
    model(tokens_BT[:, :8], Context(selection="causal", cache=cache))
    made = []
    tensor = torch.tensor
    monkeypatch.setattr(
        torch, "tensor", lambda *given, **words: made.append(given) or tensor(*given, **words)
    )
    model(tokens_BT[:, 8:], Context(selection="causal", cache=cache))
    assert not made


def test_a_skipped_token_leaves_no_key() -> None:
    shape = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, kv_heads=2, mlp_width=64)
    model = warmed(shape, "mod")
    cache, context = Cache(2), Context(selection="causal")
    context.cache = cache
    model(torch.randint(97, (2, 40)), context)
    entered = context.trace.tensors[1, "selected"].sum(1).tolist()
    assert 0 < sum(entered) < 80
    assert cache.lengths(0) == [40, 40]
    assert cache.lengths(1) == entered
    width_bytes = 2 * 2 * 8 * 4  # keys and values, two heads of 8, float32
    assert cache.bytes == (80 + sum(entered)) * width_bytes


def test_what_may_look_ahead_may_not_fill_a_cache() -> None:
    model = build_model(ModelConfig(layers=2), build_router("mod"))
    with pytest.raises(ValueError, match="selection 'topk' with a cache; it must be 'causal'"):
        model(torch.zeros(1, 4, dtype=torch.long), Context(cache=Cache(1)))
    with pytest.raises(UserError, match="a cache needs 1 or more sequences, not 0"):
        Cache(0)


def test_a_rewound_cache_goes_on_as_if_nothing_had_followed() -> None:
    model = warmed(ModelConfig(vocabulary=97, width=32, layers=4, heads=4), "mod")
    tokens_BT = torch.randint(97, (3, 40))

    def read(cache: Cache, part_BT: Tensor) -> Tensor:
        with torch.no_grad():
            return model(part_BT, Context(selection="causal", cache=cache))

    cache = Cache(3)
    read(cache, tokens_BT[:, :20])
    mark, size = cache.mark(), cache.bytes
    first = [read(cache, tokens_BT[:, place : place + 1]) for place in range(20, 40)]
    assert cache.bytes > size
    cache.rewind(mark)
    assert (cache.read, cache.bytes) == ([20] * 3, size)
    again = [read(cache, tokens_BT[:, place : place + 1]) for place in range(20, 40)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
