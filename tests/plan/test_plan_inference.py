"""Memory of a prefill, from shapes."""

from dataclasses import replace

import pytest

from modbench.model.config import ModelConfig
from modbench.plan.activations import inference_memory
from modbench.routing.build import meta_decoder

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, kv_heads=2, mlp_width=64)


def memory(
    router: str, *, bfloat16: bool = False, sequences: int = 3, length: int = 64
) -> dict[str, int]:
    return inference_memory(meta_decoder(router, {}, SHAPE), sequences, length, bfloat16=bfloat16)


def test_keys_and_values_by_hand() -> None:
    # Each of 4 layers keeps a key and a value of 2 heads of 8 for each of 3 * 64 tokens.
    assert memory("vanilla")["cache"] == 4 * 2 * 16 * 3 * 64 * 4
    assert memory("vanilla", bfloat16=True)["cache"] == 4 * 2 * 16 * 3 * 64 * 2
    # Two of them keep an eighth.
    assert memory("mod")["cache"] == (2 * 64 + 2 * 8) * 2 * 16 * 3 * 4


def test_weights_are_counted_once_in_their_dtype() -> None:
    parameters = meta_decoder("mod", {}, SHAPE).parameter_count()
    assert memory("mod")["parameters"] == 4 * parameters
    assert memory("mod", bfloat16=True)["parameters"] == 2 * parameters


@pytest.mark.parametrize("router", ["vanilla", "mod", "token_choice", "expert_choice"])
def test_the_rest_grows_with_the_prompts(router: str) -> None:
    small, large = (memory(router, sequences=n)["activations"] for n in (3, 6))
    assert large > 1.5 * small
    # At least the stream itself.
    assert small > 3 * 64 * 32 * 4


def test_logits_are_those_of_the_last_token_alone() -> None:
    wide = meta_decoder("vanilla", {}, replace(SHAPE, vocabulary=10_000))
    assert inference_memory(wide, 3, 64, bfloat16=False)["activations"] < 64 * 10_000 * 4


def test_keys_and_values_that_stay_are_no_work() -> None:
    """Further layers keep more, and each does what any does."""
    deep = meta_decoder("vanilla", {}, replace(SHAPE, layers=12))
    shallow, deeper = memory("vanilla"), inference_memory(deep, 3, 64, bfloat16=False)
    assert deeper["cache"] == 3 * shallow["cache"]
    assert deeper["activations"] == shallow["activations"]
