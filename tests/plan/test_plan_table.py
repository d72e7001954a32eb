"""Whole plans, and how they are printed."""

import json
import re
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from modbench.model.config import ModelConfig
from modbench.model.sizes import Size
from modbench.plan.gpus import Cluster, described_gpu
from modbench.plan.memory import Recipe
from modbench.plan.plan import Plan, as_json, as_table, plan

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


def test_both_formats_tell_the_same() -> None:
    made = planned()
    document = json.loads(as_json(made))
    assert "\n" not in as_json(made)
    assert [row["router"] for row in document["schemes"]] == ["vanilla", "mod:half"]
    for scheme, told in zip(made.schemes, document["schemes"], strict=True):
        assert told["training_flops"] == scheme.training_flops
        assert told["memory"]["total"] == scheme.memory.total
        assert told["kv_heads"] == 4
        assert told["largest_micro_batch"] == scheme.largest_micro_batch
    assert document["cluster"]["utilisation"] == 0.5
    assert document["recipe"]["state"] == "fp32"
    text = as_table(made)
    assert "model FLOPs utilisation 50% (assumed)" in text
    assert "FLOPs under convention model, nominal routing" in text
    for scheme in made.schemes:
        assert f"{scheme.training_flops:.4g}" in text


def test_a_second_forward_pass_is_executed_and_not_needed() -> None:
    def flops(convention: str, checkpoint: bool) -> int:
        made = planned("vanilla", convention=convention, recipe=Recipe(checkpoint=checkpoint))
        return made.schemes[0].training_flops

    assert flops("model", True) == flops("model", False)
    assert flops("executed", True) > flops("executed", False)


_TRILLION = """
import resource
from modbench.model.config import ModelConfig
from modbench.model.sizes import SIZES, Size
from modbench.plan.gpus import Cluster, described_gpu
from modbench.plan.memory import Recipe
from modbench.plan.plan import plan

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

plan(["mode_staged"], {}, SIZES["1M"], tokens=10**6, cluster=Cluster(), recipe=Recipe(shard=8))
before = peak()
model = ModelConfig(
    vocabulary=129280, width=7168, layers=61, heads=128, mlp_width=18432, tied_head=False
)
made = plan(
    ["mode_staged"],
    {"experts": 32, "top_k": 2, "expert_width": 24576},
    Size(model=model, sequence=4096),
    tokens=15 * 10**12,
    cluster=Cluster(gpu=described_gpu("h200"), gpus=2048),
    recipe=Recipe(state="bf16", shard=512, checkpoint=True),
)
scheme = made.schemes[0]
print(scheme.parameters, peak() - before)
"""


@pytest.mark.full
def test_a_trillion_parameters_are_planned_in_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _TRILLION], capture_output=True, text=True, check=True)
    parameters, grown = (int(word) for word in done.stdout.split())
    # Layers of 32 experts of 3 x 7168 x 24576, attention of 4 x 7168^2, a router and two norms; every
    # other has a depth router and a predictor.
    layer = 32 * 3 * 7168 * 24576 + 4 * 7168**2 + 32 * 7168 + 2 * 7168
    routed = 7168 + 7168 * 3584 + 3584
    assert parameters == 61 * layer + 30 * routed + 2 * 129280 * 7168 + 7168
    assert parameters > 10**12
    kilobytes = grown if sys.platform != "darwin" else grown // 1024
    assert kilobytes < 200 * 1024
