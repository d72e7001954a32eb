"""What is said of activations without values, against what real training steps keep.

B sequences, T tokens, V vocabulary.
"""

import weakref
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbench.accounting.statement import meta_decoder
from modbench.errors import UserError
from modbench.kernels.cross_entropy.fast import LOGITS
from modbench.ledger import Ledger, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer
from modbench.plan.activations import MANY, Compute, Steps
from modbench.plan.memory import Measured, Recipe
from modbench.plan.memory_trace import Live
from modbench.routers.token_choice import TokenChoiceExperts
from modbench.routing import registry
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.routing.router import Router
from modbench.routing.topk import counts_to_host

ROUTERS = ("vanilla", "token_choice", "expert_choice", "mod", "mode_staged", "mode_integrated")
SEQUENCES, LENGTH = 3, 40


def trained(
    router: str, shape: ModelConfig, compute: Compute, checkpoint: bool = False
) -> tuple[int, int, Context]:
    """Bytes of the distinct storages that a real forward pass and loss save, parameters aside; the most
    that is alive in the second of two micro-batches; and the forward pass's context."""
    model = build_model(shape, build_router(router)).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    tokens_BT = torch.randint(shape.vocabulary, (SEQUENCES, LENGTH))
    saved: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def loss() -> tuple[Any, Context, tuple[Tensor, Tensor]]:
        inputs_BT, targets_BT = tokens_BT.clone(), tokens_BT.clone()
        context = Context(checkpoint=checkpoint)
        on = compute == "autocast"
        with torch.autocast("cpu", torch.bfloat16) if on else nullcontext():
            loss = model.loss(inputs_BT, targets_BT, context)
        return loss + context.trace.auxiliary_loss(), context, (inputs_BT, targets_BT)

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Weakly: what a sort saves for the sake of values that nobody takes is soon gone.
        saved[storage.data_ptr()] = weakref.ref(storage)
        return tensor

    kept = 0
    if not checkpoint:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held = loss()
        for at, reference in saved.items():
            storage = reference()
            kept += 0 if storage is None or at in parameters else storage.nbytes()
            del storage
        del held
    live = Live(model.parameters())
    with live:
        second, context, _tokens_BT = loss()
        second.backward()
    return kept, live.peak, context


def nominal_as_realised(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    """No-op experts take what an untrained router gives them: let that be what is promised."""
    counts = context.trace.counts

    def nominal(self: TokenChoiceExperts, tokens: int, past: int) -> int:
        return counts[self.layer, "experts"][0] * tokens // (SEQUENCES * LENGTH)

    monkeypatch.setattr(TokenChoiceExperts, "_nominal", nominal)


@pytest.mark.parametrize("compute", ["float32", "autocast"])
@pytest.mark.parametrize("router", ROUTERS)
def test_what_is_said_to_be_kept_is_what_a_real_step_saves(
    router: str, compute: Compute, shape: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, _, context = trained(router, shape, compute)
    if router == "mode_integrated":
        nominal_as_realised(monkeypatch, context)
    steps = Steps(meta_decoder(router, {}, shape), LENGTH, compute=compute, kernels="cpu")
    outside = steps.outside(SEQUENCES)
    said = outside.kept + outside.copies
    for number, count in steps.kinds.items():
        layer = steps.layer(number, SEQUENCES)
        said += count * (layer.stream + layer.kept + layer.copies)
    assert sum(steps.kinds.values()) == shape.layers
    assert said == real


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "checkpoint"])
@pytest.mark.parametrize("router", ROUTERS)
def test_the_peak_is_that_of_a_real_step(
    router: str, checkpoint: bool, shape: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, real, context = trained(router, shape, "autocast", checkpoint)
    if router == "mode_integrated":
        nominal_as_realised(monkeypatch, context)
    measured = Measured(
        meta_decoder(router, {}, shape), LENGTH, Recipe(checkpoint=checkpoint), kernels="cpu"
    )
    memory = measured.memory(SEQUENCES)
    states = memory.parameters + memory.gradients + memory.optimizer
    # What a layer runs again holds a little more on paper: no two of the largest are held at once. And a
    # step begins with the gradients of all layers' auxiliary losses, where one layer is planned alone;
    # where experts run all at once it has given back the weights that later layers had cast.
    assert memory.total - states == pytest.approx(real, rel=0.12 if checkpoint else 0.05)


def test_what_later_layers_keep_is_not_there_while_an_earlier_one_works(
    monkeypatch: pytest.MonkeyPatch, shape: ModelConfig
) -> None:
    """In a model of two kinds in turn, the dense one works before the routed one that comes last."""
    deeper = replace(shape, layers=4)
    steps = Steps(meta_decoder("mod", {}, deeper), LENGTH, compute="float32", kernels="cpu")
    assert steps.depths == [0, 1, 0, 1]
    assert (steps.later(0), steps.later(1)) == ([1], [])
    measured = Measured(meta_decoder("mod", {}, deeper), LENGTH, Recipe(), kernels="cpu")
    less = measured.memory(SEQUENCES).working
    monkeypatch.setattr(Steps, "later", lambda steps, number: [])
    measured = Measured(meta_decoder("mod", {}, deeper), LENGTH, Recipe(), kernels="cpu")
    assert steps.layer(0, SEQUENCES).working > steps.layer(1, SEQUENCES).working
    kept = measured._steps.layer(1, SEQUENCES).kept
    assert 0 < measured.memory(SEQUENCES).working - less <= kept


def test_a_dense_layer_by_hand() -> None:
    shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48)
    steps = Steps(meta_decoder("vanilla", {}, shape), LENGTH, compute="bfloat16")
    layer = steps.layer(0, SEQUENCES)
    width, heads, key_heads, head_width, hidden = 32, 4, 2, 8, 48
    in_bfloat16 = (
        width  # normalised for attention
        + (heads + 2 * key_heads) * head_width  # of which the values are a part
        + (heads + key_heads) * head_width  # queries and keys, rotated
        + heads * head_width  # what attention gives
        + width  # the stream in the middle
        + width  # normalised for the MLP
        + 2 * hidden  # gate and up
        + 2 * hidden  # silu of the gate, and the same times up
    )
    in_float32 = 2 + heads  # a scale for each norm, log-sum-exp for each head
    rotation = 2 * 4 * LENGTH * head_width // 2  # cos and sin
    rows = SEQUENCES * LENGTH
    assert layer.stream == rows * width * 2
    assert layer.kept == rows * (2 * in_bfloat16 + 4 * in_float32) + rotation
    assert layer.copies == 0


def test_head_and_loss_by_hand() -> None:
    shape = ModelConfig(vocabulary=5000, width=16, layers=2, heads=2)
    outside = Steps(meta_decoder("vanilla", {}, shape), LENGTH, compute="bfloat16").outside(SEQUENCES)
    rows = SEQUENCES * LENGTH
    assert rows * 5000 < LOGITS  # one part of the loss has them all
    assert outside.tokens == 2 * 8 * rows
    # Tokens for the embedding; stream and its scale for the norm; the head's input; log-softmax, targets
    # and the number of rows for the loss.
    assert outside.kept == rows * (8 + 16 * 2 + 4 + 16 * 2 + 5000 * 4 + 8) + 4
    # The log-softmax, its gradient and that of the logits.
    assert outside.peak == pytest.approx(rows * 5000 * (4 + 4 + 4), rel=0.01)
    one, few, many = (
        Steps(meta_decoder("vanilla", {}, shape), length, compute="autocast", kernels="cpu")
        for length in (1000, 20_000, 40_000)
    )
    # Beyond some parts of the loss, which are not run one by one: as if they were.
    assert 40_000 * SEQUENCES > MANY * (LOGITS // 5000)
    for steps, length in ((one, 1000), (few, 20_000), (many, 40_000)):
        assert steps.outside(SEQUENCES) == steps._outside(length * SEQUENCES)
    # Of more tokens no more logits are held.
    assert many.outside(SEQUENCES).peak < 1.1 * few.outside(SEQUENCES).peak


@pytest.mark.parametrize("router", ["token_choice", "expert_choice", "mode_staged"])
def test_divided_experts_keep_as_much_for_the_same_rows(router: str) -> None:
    decoder = meta_decoder(router, {}, ModelConfig(vocabulary=64, width=32, layers=2, heads=4))
    whole, divided = (
        Steps(decoder, 16, compute="autocast", expert_parallel=n).layer(0, SEQUENCES) for n in (1, 4)
    )
    assert divided.kept == whole.kept
    # Of 8 experts' weights, 3 x 32 x 48 each, bfloat16 copies of 2 are kept, and gradients held.
    assert whole.copies - divided.copies == 6 * 3 * 32 * 48 * 2
    assert 0 < whole.working - divided.working <= 6 * 3 * 32 * 48 * 4


def test_depth_routing_keeps_less() -> None:
    shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=4)
    steps = Steps(meta_decoder("mod", {"causal": "aux_bce"}, shape), 64, compute="bfloat16")
    dense, routed = (steps.layer(number, SEQUENCES) for number in (0, 1))
    # An eighth of the tokens enters; scores, indices and what the router saw in float32 stay besides.
    assert dense.kept / 8 < routed.kept < dense.kept / 3


class Counting(Layer):
    """A layer that sends on the tokens whose first coordinate is above 0, counted ``by``."""

    def __init__(self, model: ModelConfig, layer: int, by: str) -> None:
        super().__init__()
        self.block, self.by, self.scale = Block(model, layer), by, nn.Parameter(torch.ones(()))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        above = (x_BTD[..., 0] > 0).sum(1)
        if self.by == "item":
            counts = above.tolist()
        elif self.by == "known":
            counts = counts_to_host(above, [x_BTD.shape[1] // 2] * len(x_BTD))
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
    by: str = "known"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Counting(model, layer, self.by)


@pytest.fixture
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered, "by_count", ByCount)


@pytest.mark.usefixtures("_plugin")
def test_a_plugin_that_takes_counts_from_known_is_planned() -> None:
    shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=4)
    half = Steps(meta_decoder("by_count", {}, shape), 64, compute="bfloat16").layer(0, 2)
    dense = Steps(meta_decoder("vanilla", {}, shape), 64, compute="bfloat16").layer(0, 2)
    assert 0.4 * dense.kept < half.kept < 0.8 * dense.kept


@pytest.mark.usefixtures("_plugin")
@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("item", r"router 'by_count' can't be planned: .* through modbench.routing.topk.known$"),
        ("error", r"router 'by_count' raised RuntimeError: no when its layer was run .* mend it$"),
    ],
)
def test_a_plugin_that_cannot_be_run_is_told_why(by: str, says: str) -> None:
    shape = ModelConfig(vocabulary=64, width=32, layers=2, heads=4)
    steps = Steps(meta_decoder("by_count", {"by": by}, shape), 64, compute="bfloat16")
    with pytest.raises(UserError, match=says):
        steps.layer(0, 2)
