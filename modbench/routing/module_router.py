"""ModuleRouter: puts a module that knows nothing of modbench into the shared decoder.

B sequences, T tokens, D model width, C cached and new tokens, R sequences of one length.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.ledger import Ledger, Workload, component
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.counted import counted_ledger
from modbench.model.layer import Layer
from modbench.model.mlp import FeedForward
from modbench.routing.hook_checks import expect, shown
from modbench.routing.router import Router, overrides


class ModuleRouter(Router):
    """Layers made of any module from hidden states (B, T, D) to hidden states (B, T, D), such as a block
    from a paper's repository. Override `block` or `feed_forward`.

    A module that returns a tuple of hidden states and a scalar has that as auxiliary loss, a mean over
    tokens. It needs neither padding nor a cache: sequences of different lengths run in several passes,
    and decoding runs a block on the whole text again, whose hidden states the cache keeps.

    FLOPs are counted: the module runs on the meta device, where tensors have no values, or, if it reads
    values, on random hidden states. So a number of routed tokens that follows from the number of tokens
    is exact, and one that follows from their values is refused: nothing reports it.
    """

    def block(self, model: ModelConfig, layer: int) -> nn.Module | None:
        """Return the module in place of the block at depth ``layer``: it returns the residual stream,
        residual connections included. None: the dense block."""
        return None

    def feed_forward(self, model: ModelConfig, layer: int) -> nn.Module | None:
        """Return the module in place of the MLP at depth ``layer``: it returns the update of the
        residual stream, from the normalised stream. None: the dense MLP."""
        return None

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        if not any(overrides(self, hook, ModuleRouter) for hook in ("block", "feed_forward")):
            raise UserError("neither block nor feed_forward is overridden; return the module from one")
        if (block := _checked(self, "block", model, layer)) is not None:
            return ModuleBlock(block, lambda: self.block(model, layer))
        if (module := _checked(self, "feed_forward", model, layer)) is not None:
            mlp = ModuleFeedForward(module, lambda: self.feed_forward(model, layer))
            return Block(model, layer, mlp)
        return Block(model, layer)


def _checked(router: ModuleRouter, hook: str, model: ModelConfig, layer: int) -> nn.Module | None:
    module = getattr(router, hook)(model, layer)
    if module is not None:
        right = isinstance(module, nn.Module)
        expect(router, hook, right, shown(module), "a torch.nn.Module, or None")
    return module  # type: ignore[no-any-return]


class _ModuleLayer(Layer):
    """A module, and ``build``, which makes another one like it."""

    has_data_dependent_shapes = True  # perhaps; torch.compile leaves out a module that it may not trace

    def __init__(self, module: nn.Module, build: Callable[[], nn.Module | None]) -> None:
        super().__init__()
        self.module = module
        self._build = build

    def run(self, x_BTD: Tensor, lengths: Sequence[int], context: Context, label: str) -> Tensor:
        """Run the module on each sequence without its padding; report its auxiliary loss. The output is
        0 in padding."""
        rows: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            rows.setdefault(length, []).append(row)
        out: dict[int, Tensor] = {}
        losses = list[Tensor]()
        for length, of_length in rows.items():
            alike = len(rows) == 1 and length == x_BTD.shape[1]
            x_RTD = x_BTD if alike else x_BTD[of_length, :length]
            with component(label, self.place.layer):
                y_RTD, loss = self._split(self.module(x_RTD), x_RTD)
            if loss is not None:
                losses.append(loss * (len(of_length) * length / sum(lengths)))
            if alike:
                return self._reported(y_RTD, losses, context)
            out |= zip(of_length, F.pad(y_RTD, (0, 0, 0, x_BTD.shape[1] - length)), strict=True)
        return self._reported(torch.stack([out[row] for row in sorted(out)]), losses, context)

    def _reported(self, out_BTD: Tensor, losses: Sequence[Tensor], context: Context) -> Tensor:
        if losses and context.selection == "topk":
            context.trace.loss(self.place.layer, "module", torch.stack(list(losses)).sum())
        return out_BTD

    def _split(self, returned: Any, x_RTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the hidden states and the auxiliary loss of what the module ``returned``."""
        y_RTD, loss = (
            returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        )
        right = isinstance(y_RTD, Tensor) and y_RTD.shape == x_RTD.shape
        if not right or not (loss is None or (isinstance(loss, Tensor) and loss.numel() == 1)):
            raise UserError(
                f"layer {self.place.layer}: {type(self.module).__name__} returned {shown(returned)} for "
                f"{shown(x_RTD)}; let a module of your own around it return the hidden states, or them "
                "and a scalar loss"
            )
        return y_RTD, None if loss is None else loss.reshape(())

    def ledger(self, workload: Workload) -> Ledger:
        return counted_ledger(self, self.place, workload, mixes=self.mixes, with_values=self._like)

    @property
    def has_closed_form(self) -> bool:
        return False

    def _like(self) -> "_ModuleLayer":
        """Return such a layer with initial weights on the CPU, trained and frozen as this one."""
        with torch.device("cpu"):
            module = self._build()
        assert module is not None
        frozen = {name for name, weight in self.module.named_parameters() if not weight.requires_grad}
        for name, weight in module.named_parameters():
            weight.requires_grad_(name not in frozen)
        layer = copy.copy(self)
        layer._modules = {"module": module}
        return layer


class ModuleBlock(_ModuleLayer):
    """A module in place of a block."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        lengths = context.lengths(x_BTD)
        if context.cache is None:
            return self.run(x_BTD, lengths, context, "block")
        number = self.place.layer
        past = context.cache.lengths(number, context.rows)
        left_B1TP, right_B1TP = x_BTD[:, None].chunk(2, dim=-1)  # a cache keeps two tensors of one shape
        both = context.cache.extend(number, left_B1TP, right_B1TP, lengths, context.rows)
        text_BCD = torch.cat(both, dim=-1)[:, 0]
        ends = [before + new for before, new in zip(past, lengths, strict=True)]
        out_BCD = self.run(text_BCD, ends, context, "block")
        first_B1 = torch.tensor(past, device=x_BTD.device)[:, None]
        at_BT = first_B1 + torch.arange(x_BTD.shape[1], device=x_BTD.device)
        at_BT1 = at_BT.clamp(max=out_BCD.shape[1] - 1)[..., None]
        return out_BCD.gather(1, at_BT1.expand_as(x_BTD))


class ModuleFeedForward(_ModuleLayer, FeedForward):
    """A module in place of an MLP."""

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.run(x_BTD, context.lengths(x_BTD), context, "mlp")
