"""Predicted bytes of activations against those of real training steps.

B sequences, T tokens, V vocabulary.
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Ledger, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer
from modbench.plan import activations
from modbench.plan.activations import Compute, training_activations
from modbench.plan.memory import Measured, Recipe
from modbench.plan.without_values import Live
from modbench.routing import registry
from modbench.routing.build import build_model, meta_decoder
from modbench.routing.expert_router import ExpertRouter
from modbench.routing.registry import build_router
from modbench.routing.router import Router
from modbench.routing.topk import counts_to_host

ROUTERS = ("vanilla", "token_choice", "expert_choice", "mod", "mode_staged", "mode_integrated")
SEQUENCES, LENGTH = 3, 40
#: Odd vocabulary, grouped heads, an untied head, a depth that 2 does not divide.
AWKWARD = ModelConfig(
    vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80, tied_head=False
)


def real_peak(
    router: str, shape: ModelConfig, compute: Compute, checkpoint: bool
) -> tuple[int, Context]:
    """Peak bytes of a real step that accumulates gradients, and its context."""
    model = build_model(shape, build_router(router)).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tokens_BT = torch.randint(shape.vocabulary, (SEQUENCES, LENGTH))
    live = Live(model.parameters())
    with live:
        inputs_BT, targets_BT = tokens_BT.clone(), tokens_BT.clone()
        context = Context(checkpoint=checkpoint)
        on = compute == "autocast"
        with torch.autocast("cpu", torch.bfloat16) if on else nullcontext():
            loss = model.loss(inputs_BT, targets_BT, context)
        (loss + context.trace.auxiliary_loss()).backward()
    return live.peak, context


def use_realised_counts(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    """Replace the nominal number of real experts' tokens by what the untrained router chose."""
    counts = [count for (_, name), (count,) in context.trace.counts.items() if name == "experts"]

    def nominal(self: ExpertRouter, lengths: Sequence[int], past: Sequence[int]) -> int:
        return sum(counts) // len(counts) * sum(lengths) // (SEQUENCES * LENGTH)

    monkeypatch.setattr(ExpertRouter, "nominal_assignments", nominal)


@pytest.mark.parametrize(
    ("compute", "checkpoint"), [("float32", False), ("autocast", False), ("autocast", True)]
)
@pytest.mark.parametrize("router", ROUTERS)
def test_peak_is_within_10_percent_of_a_real_step(
    router: str,
    compute: Compute,
    checkpoint: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, context = real_peak(router, AWKWARD, compute, checkpoint)
    if router == "mode_integrated":
        use_realised_counts(monkeypatch, context)
    recipe = Recipe(checkpoint=checkpoint)
    measured = Measured(meta_decoder(router, {}, AWKWARD), LENGTH, recipe, "cpu", compute)
    memory = measured.memory(SEQUENCES)
    assert memory.activations == pytest.approx(real, rel=0.05)


def of_a_layer(router: str, shape: ModelConfig, **options: object) -> int:
    """Bytes that one more group of two layers adds to the peak."""
    peaks = (
        training_activations(
            meta_decoder(router, options, replace(shape, layers=layers)),
            SEQUENCES,
            LENGTH,
            compute="bfloat16",
        )
        for layers in (4, 2)
    )
    return next(peaks) - next(peaks)


def test_a_dense_layer_by_hand() -> None:
    shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48)
    width, heads, key_heads, head_width, hidden = 32, 4, 2, 8, 48
    in_bfloat16 = (
        width  # the stream
        + width  # normalised for attention
        + (heads + 2 * key_heads) * head_width  # including the values
        + (heads + key_heads) * head_width  # queries and keys, rotated
        + heads * head_width  # what attention gives
        + width  # the stream in the middle
        + width  # normalised for the MLP
        + 2 * hidden  # gate and up
        + 2 * hidden  # silu of the gate, and its product with up
    )
    in_float32 = 2 + heads  # a scale for each norm, log-sum-exp for each head
    rotation = 2 * 4 * LENGTH * head_width // 2  # cos and sin
    rows = SEQUENCES * LENGTH
    each = rows * (2 * in_bfloat16 + 4 * in_float32) + rotation
    assert of_a_layer("vanilla", shape) == 2 * each


def test_a_gpus_norm_keeps_less_than_a_cpus() -> None:
    decoder = meta_decoder("vanilla", {}, AWKWARD)
    gpu, cpu = (
        training_activations(decoder, SEQUENCES, LENGTH, compute="bfloat16", kernels=kernels)
        for kernels in ("gpu", "cpu")  # type: ignore[arg-type]
    )
    assert gpu < 0.9 * cpu


def test_depth_routing_keeps_less() -> None:
    shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=4)
    dense, routed = of_a_layer("vanilla", shape), of_a_layer("mod", shape, causal="aux_bce")
    # An eighth of the tokens is selected; scores, indices and float32 router inputs are kept too.
    assert (1 + 1 / 8) / 2 < routed / dense < (1 + 1 / 3) / 2


class Counting(Layer):
    """Selects tokens whose first coordinate is positive; ``by`` is how it counts them."""

    def __init__(self, model: ModelConfig, layer: int, by: str) -> None:
        super().__init__()
        self.block, self.by, self.scale = Block(model, layer), by, nn.Parameter(torch.ones(()))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        above = (x_BTD[..., 0] > 0).sum(1)
        if self.by == "item":
            counts = [int(above[0].item())]
        elif self.by == "counts_to_host":
            counts = counts_to_host(above, [x_BTD.shape[1] // 2] * len(x_BTD))
        elif self.by == "tolist":
            counts = above.tolist()
        elif self.by == "mask":
            counts = [len(x_BTD[x_BTD > 0])]
        else:
            raise RuntimeError("no")
        first = max(1, min(counts))
        y_BTD = self.block(x_BTD[:, :first], context) * self.scale
        return torch.cat((y_BTD, x_BTD[:, first:]), 1)

    def ledger(self, load: Workload) -> Ledger:
        return self.block.ledger(load)


@dataclass(frozen=True, kw_only=True)
class ByCount(Router):
    name = "by_count"
    by: str = "counts_to_host"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Counting(model, layer, self.by)


@pytest.fixture
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered, "by_count", ByCount)


@pytest.mark.usefixtures("_plugin")
def test_a_plugin_that_uses_counts_to_host_is_planned() -> None:
    shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=4)
    half, dense = of_a_layer("by_count", shape), of_a_layer("vanilla", shape)
    assert 0.4 * dense < half < 0.8 * dense


@dataclass(frozen=True, kw_only=True)
class Thinning(Router):
    """Selects half of the tokens from the tenth layer on."""

    name = "thinning"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Counting(model, layer, "counts_to_host") if layer >= 9 else Block(model, layer)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("router", ["token_choice", "mod", "thinning"])
@pytest.mark.parametrize("compute", ["bfloat16", "autocast"])
def test_two_copies_of_layers_that_repeat_give_the_bytes_of_all(
    router: str, compute: Compute, checkpoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With autocast and checkpoints, copies of weights are more than the activations of deep models."""
    monkeypatch.setitem(registry._registered, "thinning", Thinning)
    decoder = meta_decoder(router, {}, replace(AWKWARD, layers=13))

    def peak() -> int:
        return training_activations(decoder, 3, LENGTH, compute=compute, checkpoint=checkpoint)

    of_copies = peak()
    assert activations._repeated(decoder, Workload.uniform(3, LENGTH, "train"))[2] > 2
    monkeypatch.setattr(activations, "_repeated", lambda *_: (0, 0, 0))
    assert of_copies == peak()


def test_a_pass_imports_no_compiler() -> None:
    """Which takes longer than all passes of a plan."""
    steps = (
        "import sys",
        "from modbench.model.config import ModelConfig",
        "from modbench.plan.activations import training_activations",
        "from modbench.routing.build import meta_decoder",
        "shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=4)",
        f"for router in {(*ROUTERS, 'token_choice:switch', 'token_choice:olmoe', 'mod:gaussian')}:",
        "    training_activations(meta_decoder(router, {}, shape), 2, 64, compute='autocast')",
        "print(*{'torch._dynamo', 'sympy'}.intersection(sys.modules))",
    )
    command = [sys.executable, "-c", "\n".join(steps)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.usefixtures("_plugin")
@pytest.mark.parametrize(
    ("by", "says"),
    [
        *((by, r"'by_count' can't be planned: .*counts_to_host$") for by in ("item", "tolist", "mask")),
        ("error", r"router 'by_count' raised RuntimeError: no in a pass without values .* fix it$"),
    ],
)
def test_a_plugin_that_cannot_run_gets_the_reason(by: str, says: str) -> None:
    shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=4)
    decoder = meta_decoder("by_count", {"by": by}, shape)
    with pytest.raises(UserError, match=says):
        training_activations(decoder, 2, 64, compute="bfloat16")


def test_a_gpu_holds_logits_that_a_cpu_computes_in_parts() -> None:
    """8,192 tokens and 16,384 words: 512 MiB of logits, and as much of their gradient."""
    shape = ModelConfig(vocabulary=2**14, width=32, layers=1, heads=2, mlp_width=32)
    decoder = meta_decoder("vanilla", {}, shape)
    gpu, cpu, again = (
        training_activations(decoder, 8, 1024, compute="float32", kernels=kernels)
        for kernels in ("gpu", "cpu", "gpu")
    )
    assert cpu < 2**30 < gpu == again
