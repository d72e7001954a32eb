"""Each example: as short as stated, exactly counted, passing the audit, and learning."""

from pathlib import Path

import pytest
import torch

from modbench.audit import audit
from modbench.audit.warmed import warmed
from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router, load_plugin

EXAMPLES = Path(__file__).parent.parent / "examples"
#: Most lines of a file, and how its FLOPs are found.
STATED = {
    "mlp_mod": (20, "counted"),
    "jittered_top1": (25, "closed form"),
    "hash_router": (20, "closed form"),
    "tempered_expert_choice": (25, "closed form"),
    "gumbel_skip": (30, "closed form"),
    "light_heavy": (60, "counted"),
    "conv_skip": (80, "counted"),
}
SHAPE = ModelConfig(vocabulary=61, width=32, layers=2, heads=4, mlp_width=64)

examples = pytest.mark.parametrize("name", STATED)


def built(name: str) -> RoutedDecoder:
    assert load_plugin(EXAMPLES / f"{name}.py") == [name]
    return build_model(SHAPE, build_router(name))


def text(sequences: int, tokens: int, draw: int) -> torch.Tensor:
    """Runs that count up from a random token: easy to learn."""
    generator = torch.Generator().manual_seed(draw)
    first_B1 = torch.randint(61, (sequences, 1), generator=generator)
    return (first_B1 + torch.arange(tokens)) % 61


def test_every_example_of_a_router_is_here() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {
        *STATED,
        "port_bugs",
    }


@examples
def test_it_is_short_and_names_its_source(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    assert len(source.splitlines()) <= STATED[name][0]
    assert "et al." in source.split('"""')[1]


@examples
def test_it_is_counted_and_learns(name: str) -> None:
    model = built(name).train()
    assert model.flops_source == STATED[name][1]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(20):
        tokens_BT, context = text(4, 34, step), Context()
        with FlopCounter() as counter:
            loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], context)
            (loss + context.trace.auxiliary_loss()).backward()
        workload = Workload.uniform(4, 33, "train", counts=context.trace.counts)
        assert model.ledger(workload).total("model") == counter.total_model
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@examples
def test_it_passes_the_audit(name: str) -> None:
    model = built(name).train()
    for draw in range(3):  # averages and counters move
        model(text(2, 33, draw), Context())
    findings = audit(model.eval(), shapes=((3, 31),), trained=(2, 17))
    assert [f"{f.name}: {f.figure}" for f in findings if f.failed] == []


@pytest.mark.parametrize(
    ("name", "probes", "words"),
    [
        ("port_right", set(), ""),
        ("port_top_k", {1, 3}, "earlier positions changed"),
        ("port_one_target", {8}, "loss 'module' of layer 1 changes"),
        ("port_schedule", {10}, "after resuming"),
    ],
)
def test_audit_names_the_bug_of_a_public_port(name: str, probes: set[int], words: str) -> None:
    load_plugin(EXAMPLES / "port_bugs.py")
    findings = audit(warmed(SHAPE, name, {}, 0, 17), shapes=((3, 31),), trained=(2, 17))
    figures = {finding.probe: finding.figure for finding in findings if finding.failed}
    assert set(figures) == probes
    assert words in figures.get(min(probes, default=0), "")


def test_port_that_computes_all_tokens_is_counted_with_all() -> None:
    load_plugin(EXAMPLES / "port_bugs.py")
    model = build_model(SHAPE, build_router("port_right"))
    ledger = model.ledger(Workload.uniform(1, 64))
    assert model.flops_source == "counted"
    spent = sum(flops.model for (layer, _, _), flops in ledger if layer == 1)
    assert spent == 2 * 64 * 32 * (1 + 1 + 128 + 128)  # router, predictor, two matmuls of the MLP
