"""fvcore, with the handles it lacks, agrees with the ledger; as it is, its column shows where it is
off."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modbench.accounting.statement import FORWARD_ONLY, Traced, fvcore_analysis, other_counts
from modbench.cli.main import main
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model, meta_decoder
from modbench.routing.registry import build_router, router_names

PLAIN = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
AWKWARD = ModelConfig(
    vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80, tied_head=False
)
MATMULS = ("mm", "bmm", "matmul", "linear", "einsum", "baddbmm", "addmm", "mv", "dot", "conv")
MIXTRAL = {
    "model_type": "mixtral",
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
}


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _grouped(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(inputs[0])) * _shape(inputs[1])[-1]


def fvcore_with_handles(module: torch.nn.Module, inputs: tuple[Any, ...]) -> Any:
    """fvcore's analysis, with handles for the ops that it lacks and without the one too many."""
    analysis = fvcore_analysis(module, inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.set_op_handle("aten::_grouped_mm", _grouped)
    # It is no matmul; setting the handle to None would not remove it.
    analysis._op_handles.pop("aten::layer_norm", None)
    return analysis


@pytest.mark.parametrize("shape", [PLAIN, pytest.param(AWKWARD, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", router_names())
def test_fvcore_with_handles_counts_what_the_ledger_says(name: str, shape: ModelConfig) -> None:
    if name == "mixture_of_recursions":  # whose layers must be enough to share
        shape = replace(shape, layers=4)
    model = build_model(shape, build_router(name)).eval()
    tokens_BT, context = torch.randint(shape.vocabulary, (3, 63)), Context()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = fvcore_with_handles(Traced(model), (tokens_BT,))
        total = 2 * int(analysis.total())
        left_out = dict(analysis.unsupported_ops())
        model(tokens_BT, context)
    ledger = model.ledger(Workload(lengths=(63,) * 3, padding=True, counts=context.trace.counts))
    assert total == ledger.total("full")
    assert not [op for op in left_out if op.removeprefix("aten::") in MATMULS]


def test_each_counter_reports_what_it_counts_out_of_the_box() -> None:
    projections = 2 * 2 * 9 * (48 * (48 + 2 * 16) + 48 * 48 + 48 * 4 + 2 * 3 * 48 * 80)
    head = 2 * 9 * 48 * 101
    found = other_counts(MIXTRAL, (1, 9), "forward", 0)
    assert found == {"fvcore": projections + head, "FlopCounterMode": projections + head}
    train = other_counts(MIXTRAL, (1, 9), "train", 0)
    assert train == {"fvcore": FORWARD_ONLY, "FlopCounterMode": 3 * (projections + head)}


def test_a_counter_that_fails_says_so_in_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FlopCounterMode) -> None:
        raise KeyError("no such op")

    monkeypatch.setattr(FlopCounterMode, "__enter__", fail)
    decoder = meta_decoder("vanilla", {}, ModelConfig(vocabulary=97, width=32, layers=1, heads=4))
    found = other_counts(decoder, (1, 9), "forward", 0)
    assert found["FlopCounterMode"] == "failed: KeyError"
    assert isinstance(found["fvcore"], int)


@pytest.mark.parametrize("format", ["table", "json"])
def test_profile_prints_the_counters_side_by_side(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    words = ["flops", "--hf", str(tmp_path), "--sequence", "9", "--profile", "--format", format]
    assert main(words) == 0
    out = capsys.readouterr().out
    if format == "table":
        (names,) = (line for line in out.splitlines() if line.startswith("counter"))
        assert names.split() == ["counter", "closed", "form", "modbench", "fvcore", "FlopCounterMode"]
    else:
        (model,) = json.loads(out)["models"]
        theirs = model["counters"]["fvcore"]
        assert model["counters"]["modbench"] == {"flops": model["flops"], "difference_percent": 0.0}
        off = 100 * (theirs["flops"] - model["flops"]) / model["flops"]
        assert theirs["difference_percent"] == off < 0
