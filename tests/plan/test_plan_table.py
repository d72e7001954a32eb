"""Whole plans, and how they are printed."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from modbench.model.config import ModelConfig
from modbench.model.sizes import Size
from modbench.plan.gpus import Cluster, described_gpu
from modbench.plan.memory import Recipe
from modbench.plan.plan import Plan, as_table, plan

#: One block's matmuls: 32 x 96 + 32 x 32 + 3 x 32 x 48 = 8,704 elements; the head has 32 x 100.
SIZE = Size(model=ModelConfig(vocabulary=100, width=32, layers=2, heads=4, mlp_width=48), sequence=64)
CLUSTER = Cluster(gpu=described_gpu("mine", peak_tflops=0.001, memory_gb=0.01), gpus=2, utilisation=0.5)


@cache
def planned(*routers: str, **how: Any) -> Plan:
    how = {"tokens": 10**6, "cluster": CLUSTER, "recipe": Recipe()} | how
    return plan(routers or ("vanilla", "mod:half"), {}, SIZE, **how)


def test_a_plan_by_hand() -> None:
    made = planned()
    dense, routed = made.schemes
    matmuls = 2 * 64 * (2 * 8704 + 3200)
    pairs = 2 * 4 * 32 * (64 * 65 // 2)
    assert dense.forward_flops_per_token == (matmuls + pairs) / 64
    assert dense.training_flops_per_token == 3 * (matmuls + pairs) / 64
    assert dense.training_flops == 3 * (matmuls + pairs) * 10**6 // 64
    assert dense.parameters == dense.active_parameters == 2 * (8704 + 64) + 3200 + 32
    assert dense.training_flops == dense.dense_flops
    # Two GPUs at half of 1e9 FLOP/s.
    assert dense.days == pytest.approx(dense.training_flops / 1e9 / 86_400)
    # Half the tokens in the second block: half its matmuls, a quarter of its pairs and a little.
    half = matmuls - 2 * 32 * 8704 + pairs // 2 + 4 * 32 * (32 * 33 // 2)
    routing = 2 * 64 * (32 + 32 * 16 + 16)
    assert routed.forward_flops_per_token == (half + routing) / 64
    assert routed.dense_flops == dense.training_flops > routed.training_flops


def test_a_price_is_that_of_all_gpu_hours() -> None:
    made = planned("vanilla", cluster=replace(CLUSTER, price=3.0))
    (scheme,) = made.schemes
    assert scheme.price == pytest.approx(scheme.days * 2 * 24 * 3.0)
    assert "price of all GPU-hours" in as_table(made)
    assert "price" not in as_table(planned())


def test_a_gpu_too_small_is_said_to_be() -> None:
    small = Cluster(gpu=described_gpu("mine", peak_tflops=1, memory_gb=0.0001), gpus=2)
    made = planned("vanilla", cluster=small)
    assert made.schemes[0].memory.total > made.cluster.gpu.memory
    assert made.schemes[0].largest_micro_batch == 0
    assert re.search(r"largest micro-batch +none", as_table(made))


def test_schemes_of_one_budget_spend_the_same() -> None:
    made = plan(
        ["vanilla", "mod", "mode_staged"], {}, SIZE, budget=10**13, cluster=CLUSTER, recipe=Recipe()
    )
    for scheme in made.schemes:
        assert 0.99 * 10**13 <= scheme.training_flops <= 10**13
    assert "share of the budget" in as_table(made)
    fixed = plan(["mod"], {}, SIZE, budget=10**13, tokens=5 * 10**6, cluster=CLUSTER, recipe=Recipe())
    assert fixed.schemes[0].tokens == 5 * 10**6


def test_a_second_forward_pass_is_executed_and_not_needed() -> None:
    def flops(convention: str, checkpoint: bool) -> int:
        made = planned("vanilla", convention=convention, recipe=Recipe(checkpoint=checkpoint))
        return made.schemes[0].training_flops

    assert flops("model", True) == flops("model", False)
    assert flops("executed", True) > flops("executed", False)
