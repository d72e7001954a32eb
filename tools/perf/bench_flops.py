"""Speed of counting: closed forms, the counter, the command line. Run by ``nox -s perf``."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.sizes import SIZES
from modbench.routing.build import meta_decoder

Reach = Callable[[str, float, float, str], None]
ROUTERS = ("vanilla", "token_choice", "expert_choice", "mod", "mode_staged", "mode_integrated")


@pytest.mark.parametrize("router", ROUTERS)
def test_closed_form_of_12_layers(router: str, benchmark: BenchmarkFixture, reach: Reach) -> None:
    decoder = meta_decoder(router, {}, SIZES["124M"].model)
    load = Workload.uniform(8, 1024, "train")
    benchmark(lambda: decoder.ledger(load).total())
    reach(f"closed form, 12 layers, {router}", benchmark.stats.stats.median * 1e3, 1, "ms")


def test_closed_form_of_a_trillion_parameters(benchmark: BenchmarkFixture, reach: Reach) -> None:
    shape = ModelConfig(vocabulary=128_000, width=7168, layers=61, heads=56, kv_heads=8)
    options = {"experts": 256, "top_k": 8, "expert_width": 3072}
    decoder = meta_decoder("mode_staged", options, shape)
    assert decoder.parameter_count() > 1e12
    assert all(parameter.is_meta for parameter in decoder.parameters())
    load = Workload.uniform(8, 4096, "train")
    benchmark(lambda: decoder.ledger(load).total())
    reach(
        "closed form, 61 layers of 256 experts, mode_staged",
        benchmark.stats.stats.median * 1e3,
        50,
        "ms",
    )


def forward(decoder: torch.nn.Module, tokens_BT: torch.Tensor) -> None:
    with torch.no_grad():
        decoder(tokens_BT, Context())


def training(decoder: torch.nn.Module, tokens_BT: torch.Tensor) -> None:
    decoder(tokens_BT, Context()).sum().backward()


@pytest.mark.parametrize("run", [forward, training], ids=["forward", "training"])
@pytest.mark.parametrize("router", ["vanilla", "mod"])
def test_overhead_of_the_counter_on_meta(
    router: str, run: Callable, benchmark: BenchmarkFixture, reach: Reach
) -> None:
    decoder = meta_decoder(router, {}, SIZES["124M"].model)
    tokens_BT = torch.zeros(1, 1024, dtype=torch.long, device="meta")

    def counted() -> None:
        with FlopCounter():
            run(decoder, tokens_BT)

    # In turns, so that a neighbour's load hits both alike; the fastest of each.
    times: dict[Callable, list[float]] = {counted: [], run: []}
    for _ in range(60):
        for way in times:
            start = time.perf_counter()
            way() if way is counted else way(decoder, tokens_BT)
            times[way].append(time.perf_counter() - start)
    benchmark.pedantic(counted, rounds=5, iterations=1)
    ratio = min(times[counted]) / min(times[run])
    benchmark.extra_info["ratio"] = ratio
    reach(f"counter against bare run on meta, 12 layers, {router}, {run.__name__}", ratio, 1.3, "x")


def command(*words: str) -> Callable[[], None]:
    def run() -> None:
        subprocess.run([sys.executable, "-m", "modbench", *words], check=True, stdout=subprocess.DEVNULL)

    return run


def test_command_line_with_torch(benchmark: BenchmarkFixture, reach: Reach) -> None:
    benchmark.pedantic(command("flops", "--router", "mod"), rounds=5, iterations=1)
    reach("modbench flops --router mod, cold", benchmark.stats.stats.median, 5, "s")


def test_command_line_without_torch(tmp_path: Path, benchmark: BenchmarkFixture, reach: Reach) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama"}))
    benchmark.pedantic(command("flops", "--hf", str(config)), rounds=5, iterations=1)
    reach("modbench flops --hf, which needs no torch, cold", benchmark.stats.stats.median, 1, "s")
