"""The plain loop that training is timed against computes what modbench's dense model computes.

B sequences, T tokens.
"""

import pytest
import torch
from gemm import gemms
from plain_loop import PlainDecoder, PlainLoop
from training import DTYPES, MadeUpText, Trained

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder

pytestmark = pytest.mark.full

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=40)
SEQUENCES, TOKENS = 3, 24


@torch.no_grad()
def take_weights(plain: PlainDecoder, decoder: Decoder) -> None:
    plain.embedding.weight.copy_(decoder.embedding.weight)
    plain.norm.weight.copy_(decoder.norm.weight)
    for own, block in zip(plain.blocks, decoder.layers, strict=True):
        own.attention_norm.weight.copy_(block.attention_norm.weight)
        own.mlp_norm.weight.copy_(block.feed_forward_norm.weight)
        query, key, value = block.attention.qkv.weight.chunk(3)
        own.attention.query.weight.copy_(query)
        own.attention.key.weight.copy_(key)
        own.attention.value.weight.copy_(value)
        own.attention.out.weight.copy_(block.attention.out.weight)
        gate, up = block.feed_forward.up.weight.chunk(2)
        own.mlp.gate.weight.copy_(gate)
        own.mlp.up.weight.copy_(up)
        own.mlp.down.weight.copy_(block.feed_forward.down.weight)


def alike(dtype: torch.dtype) -> tuple[PlainLoop, Trained]:
    trained = Trained("vanilla", SHAPE, dtype)
    plain = PlainLoop(SHAPE, TOKENS, dtype, learning_rate=trained.train.learning_rate)
    # Norms that are not all ones, so that one left out would be seen.
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    take_weights(plain.model, trained.model)
    return plain, trained


@pytest.mark.parametrize("precision", DTYPES)
def test_loss_and_gradients_are_those_of_the_decoder(precision: str) -> None:
    plain, trained = alike(DTYPES[precision])
    text = MadeUpText(SHAPE.vocabulary, SEQUENCES, TOKENS)
    gradients: dict[str, list[float]] = {"plain": [], "modbench": []}
    losses = dict.fromkeys(gradients, 0.0)

    def keep(name: str) -> None:
        model = plain.model if name == "plain" else trained.model
        gradients[name] = [
            model.embedding.weight.grad.norm().item(),
            model.norm.weight.grad.norm().item(),
        ]

    plain.optimizer.register_step_pre_hook(lambda *_: keep("plain"))
    trained.optimizer.register_step_pre_hook(lambda *_: keep("modbench"))
    batch = text()
    losses["plain"] = plain(*batch).item()
    losses["modbench"] = trained(*batch).item()
    near = 1e-5 if precision == "fp32" else 1e-2
    assert losses["plain"] == pytest.approx(losses["modbench"], rel=near)
    assert gradients["plain"] == pytest.approx(gradients["modbench"], rel=near)


def test_parameters_and_flops_are_those_of_the_decoder() -> None:
    plain, trained = alike(torch.float32)
    inputs_BT, targets_BT = MadeUpText(SHAPE.vocabulary, SEQUENCES, TOKENS)()
    assert sum(p.numel() for p in plain.model.parameters()) == trained.model.parameter_count()
    with FlopCounter() as counter:
        plain(inputs_BT, targets_BT)
    assert counter.total_model == trained.flops(SEQUENCES, TOKENS)


def test_text_changes_from_batch_to_batch_and_repeats_from_the_start() -> None:
    one, other = MadeUpText(50, 2, 9), MadeUpText(50, 2, 9)
    first, second = one(), one()
    assert first[0].shape == first[1].shape == (2, 9)
    assert torch.equal(first[0][:, 1:], first[1][:, :-1])
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[0], other()[0])


def test_frequencies_change_from_batch_to_batch() -> None:
    text = MadeUpText(50, 8, 4000)
    first, second = (torch.bincount(text()[0].flatten(), minlength=50).float() for _ in range(2))
    # With equal frequencies, this number of draws would leave 0.06.
    assert (first / second).log().std() > 0.3


def test_the_ceiling_has_all_matmuls_of_a_step() -> None:
    decoder = Trained("vanilla", SHAPE, torch.float32).model
    matmuls = gemms(decoder, SEQUENCES * TOKENS, torch.float32)
    each = {name: matmul.flops // 5 for name, matmul in matmuls.items()}
    assert len(each) == 3 * 5  # qkv, out, gate and up, down, head
    # What a training step takes without attention, if each block's matrices came once.
    layers = decoder.ledger(Workload.uniform(SEQUENCES, TOKENS, "train")).by_component()
    in_blocks = (layers["attention.qkv"] + layers["attention.out"] + layers["mlp"]) // SHAPE.layers
    assert sum(each.values()) == in_blocks + layers["head"]
    for matmul in matmuls.values():
        matmul()
