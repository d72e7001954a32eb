"""Invalid inputs of a forward pass raise one sentence; layers share the context."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=61, width=16, layers=4, heads=2)


@pytest.mark.parametrize("lengths", [[3], [3, 5], [0, 3]], ids=str)
@pytest.mark.parametrize("name", ["mod", "expert_choice"])
def test_lengths_that_are_none_of_the_tokens_move_nothing(name: str, lengths: list[int]) -> None:
    model = build_model(SHAPE, build_router(name)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    words = rf"lengths_B is \{lengths} for 2 sequences of 4 tokens; give each one from 1 to 4"
    with pytest.raises(UserError, match=words):
        model(torch.ones(2, 4, dtype=torch.long), Context(lengths_B=torch.tensor(lengths)))
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (
            torch.empty(0, 4, dtype=torch.long),
            r"of shape \(0, 4\) and torch.int64; they must be \(B, T\)",
        ),
        (torch.ones(4, dtype=torch.long), r"of shape \(4,\)"),
        (torch.ones(2, 4), "and torch.float32; they must be"),
    ],
    ids=str,
)
def test_tokens_that_can_not_be_read(tokens: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(SHAPE, build_router("vanilla"))(tokens, Context())


@pytest.mark.parametrize("learns", [False, True])
def test_attention_is_at_the_positions_of_the_context(learns: bool) -> None:
    """A layer may be given other positions than the model's, with a gradient and without."""
    attention = build_model(SHAPE, build_router("vanilla")).layers[0].attention
    x_BTD, context = torch.randn(2, 8, SHAPE.width), Context(positions_BT=torch.arange(8).expand(2, 8))
    with torch.set_grad_enabled(learns):
        plain_BTD = attention(x_BTD, context)
        assert torch.equal(attention(x_BTD, Context()), plain_BTD)
        inner = replace(context, positions_BT=context.positions_BT + 5)
        torch.testing.assert_close(attention(x_BTD, inner), plain_BTD)  # only distances matter
        inner = replace(context, positions_BT=context.positions_BT * 3)
        assert (attention(x_BTD, inner) - plain_BTD).abs().max() > 1e-3
