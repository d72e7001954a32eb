"""Bytes of one GPU, and what is divided over several."""

from dataclasses import replace

import pytest

from modbench.kernels.cross_entropy import fast
from modbench.model.config import ModelConfig
from modbench.plan.memory import Measured, Memory, Recipe
from modbench.routing.build import meta_decoder
from modbench.routing.expert_bank import ExpertBank

DENSE = ModelConfig(vocabulary=100, width=16, layers=2, heads=2, mlp_width=24)
#: Of DENSE: qkv, out, gate and up and down, two norms; then the tied embedding and the last norm.
BLOCK = 16 * 48 + 16 * 16 + 3 * 16 * 24 + 2 * 16
OUTSIDE = 100 * 16 + 16


def memory(router: str, micro_batch: int = 1, **recipe: object) -> Memory:
    measured = Measured(meta_decoder(router, {}, DENSE), 32, Recipe(**recipe))  # type: ignore[arg-type]
    return measured.memory(micro_batch)


def test_states_by_hand() -> None:
    parameters = 2 * BLOCK + OUTSIDE
    fp32, bf16 = memory("vanilla"), memory("vanilla", state="bf16")
    assert (fp32.parameters, fp32.gradients, fp32.optimizer) == tuple(parameters * n for n in (4, 4, 8))
    assert (bf16.parameters, bf16.gradients, bf16.optimizer) == tuple(parameters * n for n in (2, 2, 12))
    assert fp32.gathered == bf16.gathered == 0


def test_shards_by_hand() -> None:
    parameters = 2 * BLOCK + OUTSIDE
    sharded = memory("vanilla", shard=3)
    assert sharded.parameters == -(-parameters // 3) * 4
    # Two layers and one's gradients, and all outside the layers, in bfloat16.
    assert sharded.gathered == 2 * (3 * BLOCK + OUTSIDE)


def test_experts_that_are_shared_out_are_not_in_shards() -> None:
    decoder = meta_decoder("token_choice", {"experts": 4}, DENSE)
    all_weights = sum(weight.numel() for weight in decoder.parameters())
    banks = [part for part in decoder.modules() if isinstance(part, ExpertBank)]
    experts = sum(weight.numel() for bank in banks for weight in bank.parameters())
    assert experts > all_weights / 2
    shared = Measured(decoder, 32, Recipe(expert=4)).memory(1)
    assert shared.parameters == 4 * (all_weights - experts + experts // 4)
    assert shared.gathered == 0
    both = Measured(decoder, 32, Recipe(shard=8, expert=2)).memory(1)
    assert both.parameters == 4 * (-(-(all_weights - experts) // 8) + experts // 2)
    of_layer = sum(weight.numel() for weight in decoder.layers[0].parameters()) - experts // 2
    assert both.gathered == 2 * (3 * of_layer + OUTSIDE)


def test_what_is_gathered_is_the_largest_layer_wherever_it_stands() -> None:
    """Of three layers the middle one is depth-routed, and has a vector of scores in addition."""
    decoder = meta_decoder("mod", {"causal": "aux_bce"}, replace(DENSE, layers=3))
    sharded = Measured(decoder, 32, Recipe(shard=2)).memory(1)
    assert sharded.gathered == 2 * (3 * (BLOCK + 16) + OUTSIDE)


def test_checkpoints_keep_the_inputs_of_layers_alone() -> None:
    recipe = Recipe(state="bf16", shard=2, checkpoint=True)
    decoders = [meta_decoder("mod", {}, replace(DENSE, layers=layers)) for layers in (4, 6)]
    peaks = [Measured(decoder, 32, recipe).memory(2).activations for decoder in decoders]
    inputs = 2 * (2 * 32 * 16 * 2)
    assert inputs <= peaks[1] - peaks[0] < 1.3 * inputs  # routers keep a few numbers for their losses
    kept = Measured(decoders[1], 32, replace(recipe, checkpoint=False)).memory(2)
    assert peaks[1] < kept.activations


@pytest.mark.parametrize("most", [3, 40, 300])
def test_the_largest_micro_batch_is_found_on_both_sides_of_where_the_loss_is_in_parts(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 16 sequences all logits are kept, beyond them those of a part."""
    monkeypatch.setattr(fast, "GPU_LOGITS", 512 * DENSE.vocabulary)
    measured = Measured(meta_decoder("vanilla", {}, DENSE), 32, Recipe(checkpoint=True))
    peaks = [measured.memory(sequences).total for sequences in (8, 16, 32, 48)]
    assert (peaks[1] - peaks[0]) / 8 > 1.2 * (peaks[3] - peaks[2]) / 16
    assert measured.largest_micro_batch(measured.memory(most + 1).total - 1) == most


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    measured = Measured(meta_decoder("mod", {}, DENSE), 32, Recipe())
    for most in (300, 5):
        room = measured.memory(most + 1).total - 1
        assert measured.largest_micro_batch(room) == most
    assert measured.largest_micro_batch(measured.memory(1).total) == 1
    assert measured.largest_micro_batch(measured.memory(1).total - 1) == 0
