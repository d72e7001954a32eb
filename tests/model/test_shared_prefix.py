"""Several continuations of one prompt, from copies of its cache; logits at chosen places.

B sequences, T tokens, R rows of logits, V vocabulary.
"""

import torch

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.generate import decode, prefill
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(5))


def test_selected_rows_of_a_cache_continue_their_sequences_and_leave_it_as_it_was():
    model = build_model(SHAPE, build_router("mod", {"causal": "ema_threshold"})).eval()
    tokens_BT, next_R = drawn(2, 9), drawn(3)
    _, cache = prefill(model, tokens_BT, [9, 6])
    read = list(cache.read)
    copies = cache.select([1, 0, 1])
    logits_RV = decode(model, next_R, copies)
    for row, (source, length) in enumerate([(1, 6), (0, 9), (1, 6)]):
        whole_1T = torch.cat([tokens_BT[source, :length], next_R[row : row + 1]])[None]
        alone_1TV = model(whole_1T, Context(selection="causal"))
        torch.testing.assert_close(logits_RV[row], alone_1TV[0, -1], atol=1e-5, rtol=0)
    assert cache.read == read
    assert copies.read == [7, 10, 7]


def test_logits_at_places_are_those_of_the_whole_pass():
    model = build_model(SHAPE, build_router("vanilla", {})).eval()
    tokens_BT = drawn(3, 7)
    rows_R, places_R = torch.tensor([2, 0, 0]), torch.tensor([1, 6, 0])
    whole_BTV = model(tokens_BT, Context(selection="causal"))
    chosen_RV = model.logits_at(tokens_BT, Context(selection="causal"), rows_R, places_R)
    torch.testing.assert_close(chosen_RV, whole_BTV[rows_R, places_R])
