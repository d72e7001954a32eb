"""Scorers: modules that give each token its scores. The default one is linear and has a closed form;
the FLOPs of any other are counted.

B sequences, T tokens, N tokens of a batch, D model width, E scores of a token.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modbench.counting.counter import FlopCounter
from modbench.ledger import Ledger, Workload, component
from modbench.model.config import ModelConfig
from modbench.model.counted import counted_once
from modbench.model.init import normal_
from modbench.model.layer import weight_ledger
from modbench.routing.hook_checks import expect, shown
from modbench.routing.topk import score


class LayerScorer(nn.Module):
    """A scorer that depends on the depth of its layer, which the layer that holds it sets."""

    layer = 0


class LinearScorer(LayerScorer):
    """Scores W x in float32: (..., D) to (..., ``scores``), or to (...) if ``scores`` is None. Initial
    weights depend on ``layer`` and ``stream``."""

    def __init__(self, width: int, scores: int | None, *, stream: str = "router") -> None:
        super().__init__()
        self.stream = stream
        self.squeezed = scores is None
        self.weight = nn.Parameter(torch.empty(scores or 1, width))

    def initialise(self, seed: int) -> None:
        normal_(self.weight, seed, f"layers.{self.layer}.{self.stream}")

    def forward(self, x_D: Tensor) -> Tensor:
        scores_E = score(x_D, self.weight)
        return scores_E.squeeze(-1) if self.squeezed else scores_E

    def ledger(self, workload: Workload, layer: int, rows: int) -> Ledger:
        """Return the closed form of ``rows`` tokens."""
        return weight_ledger(workload, layer, "router", self.weight, rows)


def run_scorer(
    scorer: nn.Module, x_D: Tensor, layer: int, state: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return the scores of ``x_D`` in float32 or wider, computed without autocast; a scorer whose
    weights are narrower runs in their dtype. ``state``: its buffers of an earlier pass, to read them in
    place of its own."""
    call: Callable[[Tensor], Any] = scorer
    if state and _reads_buffers(scorer):
        call = partial(functional_call, scorer, dict(state))
    with component("router", layer):
        if isinstance(scorer, LinearScorer):
            return call(x_D)  # type: ignore[no-any-return]
        kind = x_D.device.type
        dtype = torch.promote_types(x_D.dtype, torch.float32)
        weight_dtype = next((p.dtype for p in scorer.parameters() if p.is_floating_point()), dtype)
        off = kind == "meta" or not torch.is_autocast_enabled(kind)
        with nullcontext() if off else torch.autocast(kind, enabled=False):
            scores: Tensor = call(x_D.to(weight_dtype))
        return scores.to(dtype) if isinstance(scores, Tensor) else scores


def scorer_of(router: Any, model: ModelConfig, layer: int) -> nn.Module | None:
    """Return the scorer of ``router``, built with the depth of its layer if it depends on that."""
    scorer: nn.Module | None = router.scorer(model)
    if scorer is None:
        return None
    module = isinstance(scorer, nn.Module)
    expect(router, "scorer", module, shown(scorer), "a torch.nn.Module or None")
    if isinstance(scorer, LayerScorer):
        scorer.layer = layer
    return scorer


def update_scorer(
    router: Any, scorer: nn.Module | None, scores: Tensor, chosen: Tensor, tokens: Any
) -> None:
    """Call the `update` of ``router``. It may write into buffers that the backward pass needs: that pass
    keeps the tensors of the forward pass, and ``scorer`` gets copies."""
    if scorer is not None and _reads_buffers(scorer):
        _copy_buffers(scorer)
    with torch.no_grad():
        router.update(scorer, scores.detach(), chosen.detach(), tokens)


def _reads_buffers(scorer: nn.Module) -> bool:
    """Return False for a scorer whose forward pass is known to read none."""
    return type(scorer).forward is not LinearScorer.forward


@torch._disable_dynamo
def _copy_buffers(scorer: nn.Module) -> None:
    for module in scorer.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()


def has_closed_form(module: nn.Module | None) -> bool:
    """Return True if the FLOPs of ``module`` follow from a closed form."""
    return module is None or callable(getattr(module, "ledger", None))


def scorer_ledger(
    scorer: nn.Module | None, workload: Workload, layer: int, width: int, *, flat: bool = False
) -> Ledger:
    """Return the FLOPs of ``scorer`` for inputs of width ``width``: from its method ``ledger(workload,
    layer, rows)`` if it has one, else counted on the meta device. The scorer reads (B, T, D), token by
    token, or if ``flat`` (N, D) without padding."""
    if scorer is None:
        return Ledger()
    rows = workload.tokens if flat else workload.slots
    if has_closed_form(scorer):
        return scorer.ledger(workload, layer, rows)  # type: ignore[no-any-return, operator]
    if not rows:
        return Ledger()
    shape = (rows, width) if flat else (1, rows, width)
    trains = workload.phase == "train"
    needs_gradient = trains and workload.input_gradient
    frozen = tuple(not parameter.requires_grad for parameter in scorer.parameters())

    def count(twin: nn.Module) -> Ledger:
        twin.train(trains)
        dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
        x_D = torch.empty(shape, dtype=dtype, device="meta", requires_grad=needs_gradient)
        with FlopCounter() as counter, torch.set_grad_enabled(trains), component("router", layer):
            out = twin(x_D)
            if trains and out.requires_grad:
                out.sum().backward()
        return counter.ledger

    return counted_once(scorer, (shape, layer, trains, needs_gradient, frozen), count)
