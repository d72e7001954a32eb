"""Bytes that a training step holds in addition to weights, gradients and optimizer states.

One layer of each kind runs once on fake tensors of the CPU: they have shapes, storages and autocast but
no values, so nothing is allocated and any router's layer works. Routing takes its nominal counts, as on
the meta device.

B sequences, T tokens, D model width, N rows, E experts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode

from modbench.errors import FAULTS, UserError
from modbench.ledger import Workload
from modbench.model.context import Context
from modbench.plan.memory_trace import Live
from modbench.routing.build import RoutedDecoder
from modbench.routing.expert_bank import ExpertBank
from modbench.routing.plugin_fault import raised
from modbench.routing.registry import build_router

#: ``float32``: everything. ``autocast``: float32 weights and residual stream, matmuls in bfloat16.
#: ``bfloat16``: weights and residual stream.
Compute = Literal["float32", "autocast", "bfloat16"]
#: The device whose kernels are assumed.
Kernels = Literal["gpu", "cpu"]

#: Tokens up to which the loss is run; beyond, it is extrapolated.
_ROWS = 2**15

_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of one layer in a training step."""

    stream: int  #: the layer's input
    kept: int  #: other tensors kept for the backward pass
    copies: int  #: weights in another dtype kept for the backward pass
    working: int  #: largest temporary use by its forward and backward pass, on top of the above


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Bytes of embedding, last norm, head and loss. ``peak``: their largest use; ``stays``: held while
    the layers run backward, which are the tokens and the gradient of a tied head."""

    peak: int
    stays: int


class _Device(TorchFunctionMode):
    """Makes fake CPU tensors behave as tensors without values on a device with ``kernels``."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._gpu = kernels == "gpu"

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Routing asks integer and boolean tensors; floating-point ones stay on the CPU for autocast.
        if func == _IS_META and not args[0].dtype.is_floating_point:
            return True
        if self._gpu and func in (F.rms_norm, torch.rms_norm):
            return _FusedNorm.apply(*args, **(kwargs or {}))  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _FusedNorm(torch.autograd.Function):
    """Storages of PyTorch's RMSNorm on a GPU, which is one kernel: it keeps the input, the weight and
    one float32 factor per row. A CPU runs several ops that keep more."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        rows = x.shape[: x.dim() - len(shape)]
        ctx.save_for_backward(x, x.new_empty(rows, dtype=torch.float32), weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, _, weight = ctx.saved_tensors
        return torch.empty_like(x), None, None if weight is None else torch.empty_like(weight), None


@contextmanager
def fake_tensors(router: str, kernels: Kernels) -> Iterator[None]:
    """Context in which tensors have no values.

    Raises:
        UserError: the layers of ``router`` need values, or fail.
    """
    try:
        with FakeTensorMode(), _Device(kernels):
            yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"router '{router}' can't be planned: it reads values of a tensor ({error.func}), and "
            "planning allocates none; take counts through modbench.routing.topk.counts_to_host"
        ) from error
    except UserError:
        raise
    except FAULTS as error:
        raise UserError(f"router '{router}' {raised(error, 'a pass without values')}") from error


@contextmanager
def default_dtype(compute: Compute) -> Iterator[None]:
    """Context in which new weights have the dtype of ``compute``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if compute == "bfloat16" else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Steps:
    """Training steps of ``decoder`` on sequences of ``length`` tokens; each expert bank is divided over
    ``expert_parallel`` GPUs."""

    def __init__(
        self,
        decoder: RoutedDecoder,
        length: int,
        *,
        compute: Compute,
        kernels: Kernels = "gpu",
        expert_parallel: int = 1,
    ) -> None:
        self._decoder, self._length = decoder, length
        self.compute, self._kernels, self._divided = compute, kernels, expert_parallel
        #: For each layer, the first layer of the same kind.
        self.kinds = _kinds(decoder, length)

    def layer(self, number: int, sequences: int) -> Footprint:
        """The layer at depth ``number``.

        Raises:
            UserError: it needs values.
        """
        config = self._decoder.config
        with fake_tensors(self._decoder.router.name, self._kernels):
            with default_dtype(self.compute):
                layer = self._decoder.router.build_layer(config, number).train()
                divide_experts(layer, self._divided)
                x_BTD = torch.empty(sequences, self._length, config.width, requires_grad=True)
            live, context = Live(_with_gradients(layer), [x_BTD]), Context()
            with live:
                with self._autocast():
                    y_BTD = layer(x_BTD, context)
                roots: list[Any] = [torch.autograd.graph.get_gradient_edge(y_BTD)]
                shape, dtype = y_BTD.shape, y_BTD.dtype
                del y_BTD
                copies, kept = live.copies, live.now - live.copies
                gradients: list[Tensor | None] = [torch.empty(shape, dtype=dtype)]
                losses = context.trace.auxiliary_loss()
                if isinstance(losses, Tensor) and losses.requires_grad:
                    roots.append(losses)
                    gradients.append(None)
                torch.autograd.backward(roots, gradients)
            stream = x_BTD.untyped_storage().nbytes()
        working = max(0, live.peak - kept - copies)
        return Footprint(stream=stream, kept=kept, copies=copies, working=working)

    def outside(self, sequences: int) -> Outside:
        """Everything but the layers, with the loss of `modbench.train.loop.training_step`."""
        rows = sequences * self._length
        if rows <= _ROWS:
            return self._outside(rows)
        # The loss runs in parts: beyond several of them, memory is linear in the rows.
        half, full = self._outside(_ROWS // 2), self._outside(_ROWS)
        extra = (rows - _ROWS) / (_ROWS - _ROWS // 2)
        return Outside(
            peak=full.peak + round((full.peak - half.peak) * extra),
            stays=full.stays + round((full.stays - half.stays) * extra),
        )

    @cache  # noqa: B019
    def _outside(self, rows: int) -> Outside:
        config = self._decoder.config
        with fake_tensors(self._decoder.router.name, self._kernels):
            with default_dtype(self.compute):
                # An untied head: fake tensors do not accumulate a tied one's gradient in place.
                shell = RoutedDecoder(
                    replace(config, layers=1, tied_head=False), build_router("vanilla")
                ).train()
            shell.layers = nn.ModuleList()
            tokens_BT = torch.zeros(1, rows, dtype=torch.long)
            live = Live(_with_gradients(shell))
            with live:
                inputs_BT, targets_BT = tokens_BT.clone(), tokens_BT.clone()
                with self._autocast():
                    loss = shell.loss(inputs_BT, targets_BT, Context())
                loss.backward()
            weight = shell.embedding.weight.untyped_storage().nbytes()
            stays = 2 * tokens_BT.untyped_storage().nbytes() + (weight if config.tied_head else 0)
        return Outside(peak=live.peak, stays=stays)

    def _autocast(self) -> Any:
        on = self.compute == "autocast"
        return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()


def _with_gradients(module: nn.Module) -> list[Tensor]:
    """The parameters, each with a gradient: that of an earlier micro-batch."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    return list(parameters)


def divide_experts(layer: nn.Module, among: int) -> None:
    """Keep in each bank of ``layer`` the experts of one of ``among`` GPUs, with the rows that all GPUs
    send them; under even routing the number of rows stays the same.

    Raises:
        UserError: ``among`` does not divide the experts.
    """
    if among == 1:
        return
    for bank in layer.modules():
        if not isinstance(bank, ExpertBank):
            continue
        if bank.experts % among:
            raise UserError(
                f"expert_parallel is {among} with {bank.experts} experts; it must divide the experts"
            )
        bank.experts //= among
        bank.up = nn.Parameter(bank.up.detach()[: bank.experts].clone())
        bank.down = nn.Parameter(bank.down.detach()[: bank.experts].clone())
        _take_all_rows(bank, among)


def _take_all_rows(bank: ExpertBank, among: int) -> None:
    whole = bank.forward

    def forward(rows_ND: Tensor, counts: Sequence[int] | None) -> Tensor:
        if counts is not None:
            counts = [sum(counts[e : e + among]) for e in range(0, len(counts), among)]
        return whole(rows_ND, counts)

    bank.forward = forward  # type: ignore[assignment, method-assign]


def _kinds(decoder: RoutedDecoder, length: int) -> list[int]:
    """Layers are of one kind if their FLOPs and the shapes of their parameters are equal."""
    first: dict[Any, int] = {}
    kinds: list[int] = []
    workload = Workload.uniform(1, length, "train")
    for number, layer in enumerate(decoder.layers):
        ledger = decoder.layer_ledger(number, workload)
        spent = frozenset((component, direction, flops) for (_, component, direction), flops in ledger)
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        kinds.append(first.setdefault((type(layer), spent, shapes), number))
    return kinds
