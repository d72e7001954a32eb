"""The dense decoder against plain loops over tokens, heads and queries, from token ids to the gradient
of every parameter.

B sequences, T tokens, V vocabulary.
"""

import layer_checks as checks
import naive
import naive_depth
import pytest
import torch
import torch.nn.functional as F
from against_loop import model_equals_its_loop, model_of

from modbench.model.config import ModelConfig
from modbench.model.context import Context

SHAPES: dict[str, ModelConfig] = {
    "swiglu": ModelConfig(vocabulary=97, width=24, layers=2, heads=3, mlp_width=20),
    "gelu": ModelConfig(vocabulary=97, width=24, layers=2, heads=3, mlp="gelu", mlp_width=20),
    "grouped": ModelConfig(vocabulary=97, width=24, layers=3, heads=6, kv_heads=2, tied_head=False),
    "one-key-head": ModelConfig(vocabulary=97, width=24, layers=1, heads=4, kv_heads=1, mlp="gelu"),
    "one-head": ModelConfig(vocabulary=97, width=24, layers=1, heads=1, tied_head=False),
    "base-and-epsilon": ModelConfig(
        vocabulary=97, width=24, layers=2, heads=2, rope_base=500.0, norm_epsilon=0.3
    ),
}


@pytest.mark.parametrize(
    "lengths", checks.full_except([(63,), (63, 63, 63), (17, 63, 1)], (17, 63, 1)), ids=str
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_equals_its_plain_loop(shape: ModelConfig, lengths: tuple[int, ...]) -> None:
    model_equals_its_loop(model_of("vanilla", {}, shape), lengths, "topk")


def test_its_cross_entropy_is_the_loop_s() -> None:
    """-log of the probability of what came next; its gradient at the embedding, which is the head."""
    model = model_of("vanilla", {}, SHAPES["swiglu"])
    tokens_BT = torch.randint(97, (2, 20))
    logits_BTV = model(tokens_BT, Context())
    loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
    (ours,) = torch.autograd.grad(loss, [model.embedding.weight])
    slow = []
    for row, logits_TV in zip(
        tokens_BT.tolist(), naive_depth.decoder(model, tokens_BT.tolist(), "topk").rows, strict=True
    ):
        p_TV = naive.softmax(logits_TV)
        slow += [-torch.log(p_TV[t, row[t + 1]]) for t in range(len(row) - 1)]
    loop = sum(slow) / len(slow)
    (theirs,) = torch.autograd.grad(loop, [model.embedding.weight])
    torch.testing.assert_close(loss, loop, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_the_last_logits_are_the_loop_s_last() -> None:
    model = model_of("vanilla", {}, SHAPES["grouped"])
    tokens_BT, lengths = torch.randint(97, (3, 20)), (20, 7, 1)
    context = Context(selection="causal", lengths_B=torch.tensor(lengths), logits="last")
    last_B1V = model(tokens_BT, context)
    ids = [tokens_BT[b, :n].tolist() for b, n in enumerate(lengths)]
    slow = [logits_TV[-1:] for logits_TV in naive_depth.decoder(model, ids, "causal").rows]
    torch.testing.assert_close(last_B1V, torch.stack(slow), rtol=1e-9, atol=1e-10)
