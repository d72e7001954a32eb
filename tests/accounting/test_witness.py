"""An outside witness: fvcore, from a trace of the model."""

import pytest
import torch

from modbench.accounting.witness import fvcore_flops
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_names

MATMULS = ("mm", "bmm", "matmul", "linear", "einsum", "baddbmm", "addmm", "mv", "dot", "conv")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("name", router_names())
def test_fvcore_counts_what_the_ledger_says(
    name: str, rule: str, dtype: torch.dtype, shape: ModelConfig
) -> None:
    model = build_model(shape, build_router(name)).to(dtype).eval()
    tokens_BT = torch.randint(shape.vocabulary, (3, 63))
    total, left_out = fvcore_flops(model, tokens_BT, selection=rule)
    context = Context(selection=rule)
    model(tokens_BT, context)
    ledger = model.ledger(Workload(lengths=(63,) * 3, padding=True, counts=context.trace.counts))
    assert total == ledger.total("full")
    assert not [op for op in left_out if op.removeprefix("aten::") in MATMULS]


def test_the_witness_would_not_miss_attention(shape: ModelConfig) -> None:
    model = build_model(shape, build_router("vanilla")).eval()
    longer, shorter = (fvcore_flops(model, torch.zeros(1, t, dtype=torch.long))[0] for t in (64, 32))
    assert longer > 2 * shorter
