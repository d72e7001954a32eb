"""Bytes of keys and values, where they are known beforehand."""

from dataclasses import replace

import numpy as np
import pytest

from modbench.measure.routing import kv_cache_measures
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
WINDOWS_WT = np.random.default_rng(0).integers(97, size=(5, 65))


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("vanilla", {}, 1),
        ("token_choice", {}, 1),
        ("mod", {"scores": "stride", "capacity": 0.25}, (2 + 2 * 0.25) / 4),
        ("mod", {"scores": "stride", "capacity": 0.25, "every": 1}, 0.25),
        ("mod", {"causal": "ema_threshold"}, 0.5),
    ],
)
def test_a_token_that_skips_a_layer_leaves_no_key(name: str, options: dict, share: float) -> None:
    made = build_model(SHAPE, build_router(name, options))
    for layer in made.layers:
        if options.get("causal") == "ema_threshold" and hasattr(layer, "threshold"):
            layer.threshold.value.fill_(1e9)  # selects no token
    found = kv_cache_measures(made, WINDOWS_WT, batch=2)
    assert found["kv_cache_share"] == share
    # Four layers of keys and values, 32 wide, of 4 bytes.
    assert found["kv_cache_bytes_per_token"] == share * 4 * 2 * 32 * 4


def test_heads_that_share_keys_keep_fewer() -> None:
    made = build_model(replace(SHAPE, kv_heads=1), build_router("vanilla", {}))
    found = kv_cache_measures(made, WINDOWS_WT)
    assert found == {"kv_cache_bytes_per_token": 4 * 2 * 8 * 4, "kv_cache_share": 1}
