"""Ledger equals counter to the integer; the counter's world is closed.

B sequences, T tokens, V vocabulary.
"""

import pytest
import torch
import torch.nn.functional as F

from modbench.counting.counter import FlopCounter
from modbench.ledger import Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

#: Odd vocabulary, grouped heads, an untied head, a depth that 2 does not divide.
AWKWARD = ModelConfig(
    vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80, tied_head=False
)
PLAIN = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
SCHEMES: dict[str, tuple[str, dict]] = {
    "vanilla": ("vanilla", {}),
    "token_choice": ("token_choice", {}),
    "token_choice-top1": ("token_choice", {"top_k": 1, "renormalise": False, "expert_width": 5}),
    "expert_choice": ("expert_choice", {}),
    "expert_choice-batch": ("expert_choice", {"pool": "batch", "capacity": 1.0}),
    "mod": ("mod", {}),
    "mod-aux": ("mod", {"causal": "aux_bce", "capacity": 0.4, "every": 1}),
    "mod-threshold": ("mod", {"causal": "ema_threshold", "residual": "full"}),
    "mode_staged": ("mode_staged", {}),
    "mode_integrated": ("mode_integrated", {"no_op_experts": 2}),
}


def entries(ledger: Ledger) -> dict:
    return {key: flops for key, flops in ledger if flops.full}


@pytest.mark.parametrize("shape", [AWKWARD, pytest.param(PLAIN, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("rule", "lengths"),
    [
        ("topk", (63, 63, 63)),
        ("causal", (63, 20, 1)),
        pytest.param("topk", (63, 20, 1), marks=pytest.mark.full),
        pytest.param("causal", (63, 63, 63), marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_forward_ledger_equals_the_counter(
    scheme: str, rule: str, lengths: tuple[int, ...], shape: ModelConfig
) -> None:
    name, options = SCHEMES[scheme]
    model = build_model(shape, build_router(name, options)).eval()
    tokens_BT = torch.randint(shape.vocabulary, (len(lengths), max(lengths)))
    lengths_B = torch.tensor(lengths) if len(set(lengths)) > 1 else None
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        context = Context(selection=rule, lengths_B=lengths_B)
        with mode(), FlopCounter() as counter:
            model(tokens_BT, context)
        ledger = model.ledger(Workload(lengths=lengths, padding=True, counts=context.trace.counts))
        assert ledger.total("full") == counter.total > 0
        assert ledger.total("model") == counter.total_model
        assert entries(ledger) == entries(counter.ledger)  # each layer's each component


@pytest.mark.parametrize("shape", [AWKWARD, pytest.param(PLAIN, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.full)], ids=str
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_ledger_equals_the_counter(scheme: str, dtype: torch.dtype, shape: ModelConfig) -> None:
    name, options = SCHEMES[scheme]
    model = build_model(shape, build_router(name, options)).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens_BT = torch.randint(shape.vocabulary, (2, 64))
    context = Context()
    with FlopCounter() as counter:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits_BTV = model(tokens_BT[:, :-1], context)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
        (loss + context.trace.auxiliary_loss()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    ledger = model.ledger(Workload(lengths=(63, 63), phase="train", counts=context.trace.counts))
    assert ledger.total("full") == counter.total
    assert ledger.total("executed") == counter.executed
    assert ledger.total("model") == counter.total_model
    assert entries(ledger) == entries(counter.ledger)  # each layer's each component, each direction
    if not context.trace.counts or name != "mode_integrated":
        nominal = model.ledger(Workload.uniform(2, 63, "train"))
        assert nominal.total("full") == counter.total  # training costs the nominal FLOPs


def test_skipped_tokens_are_not_computed() -> None:
    tokens_BT = torch.randint(97, (2, 64))
    spent = {}
    for capacity in (0.125, 1.0):
        model = build_model(PLAIN, build_router("mod", {"capacity": capacity, "every": 1}))
        with FlopCounter() as counter:
            model(tokens_BT, Context())
        spent[capacity] = counter.total
    assert spent[0.125] < 0.5 * spent[1.0]
