"""Bytes that a training step keeps for its backward pass, measured without values.

Each kind of layer is built and run once on fake tensors of the CPU: they have shapes, storages and
autocast, but no values, so that nothing is allocated and any router's layer works. Routing that depends
on values is nominal, as on the meta device.

B sequences, T tokens, D model width, N rows in all, E experts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
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
from modbench.kernels.cross_entropy.fast import part_rows
from modbench.ledger import Workload
from modbench.model.context import Context
from modbench.plan.memory_trace import Live
from modbench.routing.build import RoutedDecoder
from modbench.routing.expert_bank import ExpertBank
from modbench.routing.plugin_validation import ledger_of
from modbench.routing.registry import build_router

#: Parts of the loss from which on they are not run one by one.
MANY = 8
#: What runs in which dtype. ``float32``: all in it. ``autocast``: float32 weights and stream, matmuls in
#: bfloat16. ``bfloat16``: bfloat16 weights and stream.
Compute = Literal["float32", "autocast", "bfloat16"]
#: ``gpu``: RMSNorm and causal attention are kernels of PyTorch's. ``cpu``: the decoder's own, made of
#: several ops, which keep other things.
Kernels = Literal["gpu", "cpu"]

_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of one layer in a training step. ``stream``: its input. ``kept``: what its backward pass
    needs besides that. ``copies``: weights in another dtype that are kept, too. ``working``: the most
    that its forward and backward pass hold on top of these for a while, gradients of its parameters not
    among it (but each one of them before it is added to the sum)."""

    stream: int
    kept: int
    copies: int
    working: int


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Bytes of embedding, last norm, head and loss: ``kept`` and ``copies`` as in `Footprint`, ``peak``
    the most that they hold, what is kept included, ``tokens`` what stays after them, ``waiting`` the
    gradient of a tied head, which is held until the embedding's can be added to it."""

    kept: int
    copies: int
    peak: int
    tokens: int
    waiting: int


class _Valueless(TorchFunctionMode):
    """Makes fake tensors pass for what they are, tensors without values: where `modbench.routing.topk`
    asks an integer or boolean tensor whether it is on the meta device, the answer is yes. Floating-point
    tensors stay on the CPU, for the sake of autocast."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._on_a_gpu = kernels == "gpu"

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _IS_META and not args[0].dtype.is_floating_point:
            return True
        if self._on_a_gpu and func in (F.rms_norm, torch.rms_norm):
            return _rms_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    return _FusedNorm.apply(input, weight, len(normalized_shape))  # type: ignore[no-any-return]


class _FusedNorm(torch.autograd.Function):
    """The storages of the fused kernel of GPUs: its backward pass takes the input, the reciprocal of the
    root mean square of each row in float32, and the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, dimensions: int) -> Tensor:
        scale = x.new_empty(x.shape[:-dimensions] + (1,) * dimensions, dtype=torch.float32)
        ctx.save_for_backward(x, scale, weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, _, weight = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight), None


class Steps:
    """The training steps of a decoder on ``sequences`` x ``length`` tokens, each of its experts banks
    divided over ``expert_parallel`` GPUs."""

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
        self._compute, self._kernels, self._divided = compute, kernels, expert_parallel
        #: The kind of each layer, by the first one of it.
        self.depths = _kinds(decoder, length)
        #: The first layer of each kind, and how many there are.
        self.kinds = {number: self.depths.count(number) for number in dict.fromkeys(self.depths)}

    def later(self, number: int) -> list[int]:
        """The kinds of the layers that come after the last one of kind ``number``."""
        return self.depths[len(self.depths) - self.depths[::-1].index(number) :]

    def layer(self, number: int, sequences: int) -> Footprint:
        """The layer at depth ``number``.

        Raises:
            UserError: it needs values.
        """
        with self.valueless() as autocast:
            layer, x_BTD = self._built(number, sequences)
            live, context = Live(_with_gradients(layer), [x_BTD]), Context()
            with live:
                with live.keeping() as saved, autocast():
                    y_BTD = layer(x_BTD, context)
                kept, copies = saved.bytes(copies=False), saved.bytes(copies=True)
                roots: list[Any] = [torch.autograd.graph.get_gradient_edge(y_BTD)]
                gradients: list[Tensor | None] = [torch.empty_like(y_BTD)]
                losses = context.trace.auxiliary_loss()
                if isinstance(losses, Tensor) and losses.requires_grad:
                    roots.append(losses)
                    gradients.append(None)
                del y_BTD
                torch.autograd.backward(roots, gradients)
            stream = x_BTD.untyped_storage().nbytes()
        return Footprint(
            stream=stream, kept=kept, copies=copies, working=max(0, live.peak - kept - copies)
        )

    def remembered(self, number: int) -> int:
        """Bytes of weights that autocast remembers until its end, that of the forward pass, of the layer
        at depth ``number``, even if its backward pass is to run it again."""
        with self.valueless() as autocast:
            layer, x_BTD = self._built(number, 1)
            live = Live(layer.parameters(), [x_BTD])
            dropped = torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: None, lambda nothing: x_BTD
            )
            with live, dropped:
                with autocast():
                    layer(x_BTD, Context())
                    held = live.now
                return held - live.now

    def _built(self, number: int, sequences: int) -> tuple[nn.Module, Tensor]:
        """The layer at depth ``number``, and an input of it."""
        config = self._decoder.config
        layer = self.cast(self._decoder.router.build_layer(config, number)).train()
        divide_experts(layer, self._divided)
        dtype = torch.bfloat16 if self._compute == "bfloat16" else torch.float32
        shape = (sequences, self._length, config.width)
        return layer, torch.empty(shape, dtype=dtype, requires_grad=True)

    def outside(self, sequences: int) -> Outside:
        """All that is not a layer, the loss as `modbench.train.loop.training_step` takes it."""
        rows = sequences * self._length
        part = part_rows(self._decoder.config.vocabulary)
        if rows <= MANY * part:
            return self._outside(rows)
        # So many parts of the loss are all alike: each further row holds as much as the one before.
        few, many = MANY // 2 * part, MANY * part
        one, other = self._outside(few), self._outside(many)
        return Outside(
            **{
                name: low + (getattr(other, name) - low) * (rows - few) // (many - few)
                for name, low in asdict(one).items()
            }
        )

    def _outside(self, rows: int) -> Outside:
        with self.valueless() as autocast:
            # One layer to be thrown away: any router's will do, and not all can be built so shallow.
            # Its head is one of its own: the sum that a tied one's gradient becomes a part of is made in
            # place, but not of fake tensors, and by then nothing is left of the loss.
            config = replace(self._decoder.config, layers=1, tied_head=False)
            shell = RoutedDecoder(config, build_router("vanilla"))
            shell.layers = nn.ModuleList()
            shell = self.cast(shell).train()
            tokens_BT = torch.zeros(1, rows, dtype=torch.long)
            live = Live(_with_gradients(shell))
            with live:
                inputs_BT, targets_BT = tokens_BT.clone(), tokens_BT.clone()
                with live.keeping() as saved, autocast():
                    loss = shell.loss(inputs_BT, targets_BT, Context())
                kept, copies = saved.bytes(copies=False), saved.bytes(copies=True)
                loss.backward()
            tokens = sum(tensor.untyped_storage().nbytes() for tensor in (inputs_BT, targets_BT))
            tied = self._decoder.config.tied_head
            waiting = shell.embedding.weight.untyped_storage().nbytes() if tied else 0
        return Outside(kept=kept, copies=copies, peak=live.peak - copies, tokens=tokens, waiting=waiting)

    def cast(self, module: Any) -> Any:
        """``module`` with its weights in the dtype of the steps."""
        # Not by Module.to, which can't swap parameters that are fake.
        cast: dict[Tensor, nn.Parameter] = {}
        for part in module.modules() if self._compute == "bfloat16" else ():
            for name, weight in part.named_parameters(recurse=False):
                if weight not in cast:
                    narrow = weight.detach().to(torch.bfloat16)
                    cast[weight] = nn.Parameter(narrow, requires_grad=weight.requires_grad)
                setattr(part, name, cast[weight])
        return module

    @contextmanager
    def valueless(self) -> Iterator[Callable[[], Any]]:
        """Inside, tensors have no values. Gives what autocast the steps run under.

        Raises:
            UserError: what runs inside needs values, or fails.
        """

        def autocast() -> Any:
            on = self._compute == "autocast"
            return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()

        try:
            with FakeTensorMode(), _Valueless(self._kernels):
                yield autocast
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UserError(
                f"router '{self._decoder.router.name}' can't be planned: it asks for a tensor's values "
                f"({error.func}), where nothing is allocated; take counts through "
                "modbench.routing.topk.known"
            ) from error
        except UserError:
            raise
        except FAULTS as error:
            raise UserError(
                f"router '{self._decoder.router.name}' raised {type(error).__name__}: {error} when its "
                "layer was run without values; mend it"
            ) from error


def _with_gradients(module: nn.Module) -> list[Tensor]:
    """The parameters, each with a gradient to add to: a step's first micro-batch has made them."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    return list(parameters)


def divide_experts(layer: nn.Module, among: int) -> None:
    """Leave in each bank of ``layer`` the experts that one of ``among`` GPUs has, each with the rows
    that it gets from all of them: as many rows in all as before, where routing is even.

    Raises:
        UserError: the experts can't be divided so.
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
    """Layers are of one kind if they spend the same and their parameters have the same shapes."""
    first: dict[Any, int] = {}
    kinds: list[int] = []
    workload = Workload.uniform(1, length, "train")
    for number, layer in enumerate(decoder.layers):
        ledger = ledger_of(decoder.router, layer, number, workload)  # type: ignore[arg-type]
        spent = frozenset((component, direction, flops) for (_, component, direction), flops in ledger)
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        kinds.append(first.setdefault((type(layer), spent, shapes), number))
    return kinds
