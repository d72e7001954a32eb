"""Peak bytes of a training step or a prefill, from shapes.

The model runs on tensors that have shapes and storages but no values, so nothing is allocated and any
router works: on the meta device, or under autocast, which that device lacks, on fake tensors of the CPU;
these take about three times as long. Routing takes its nominal counts.

B sequences, T tokens.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modbench.counting.sdpa import ARGUMENTS, as_on_cpu
from modbench.errors import FAULTS, UserError
from modbench.hf.models import outlined_like
from modbench.kernels.cross_entropy import fast
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.routing.plugin_fault import raised

#: ``float32``: everything. ``autocast``: float32 weights and residual stream, matmuls in bfloat16.
#: ``bfloat16``: weights and residual stream.
Compute = Literal["float32", "autocast", "bfloat16"]
#: The device whose kernels are assumed.
Kernels = Literal["gpu", "cpu"]

#: Operators that read values; a copy to the host does if it fails.
_READS_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_COPY = torch.ops.aten._to_copy.default
_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]


class _ReadsValuesError(Exception):
    """An operator failed that reads values."""


class Live(TorchDispatchMode):
    """Bytes of storages allocated inside: ``now`` and ``peak``. Tensors in ``before`` and their
    gradients exist before and do not count."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        before = list(before)
        gradients = [tensor.grad for tensor in before if tensor.is_leaf and tensor.grad is not None]
        # Holding them keeps their addresses from being used again.
        self._before = [tensor.untyped_storage() for tensor in (*before, *gradients)]
        self._known = {storage._cdata for storage in self._before}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            out = func(*args, **(kwargs or {}))
        except FAULTS as error:
            if func is _COPY or _READS_VALUES.intersection(func.tags):
                raise _ReadsValuesError(str(func)) from error
            raise
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Device(TorchFunctionMode):
    """Makes tensors without values behave as those of a device with ``kernels``."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._gpu = kernels == "gpu"

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Fake tensors: routing asks integer and boolean ones; floating-point ones keep autocast.
        if func == _IS_META and not args[0].dtype.is_floating_point:
            return True
        if func is F.scaled_dot_product_attention:
            fused = as_on_cpu(dict(zip(ARGUMENTS, args, strict=False)) | (kwargs or {}))
            if fused is not None:  # else, as on a CPU, by matmuls
                return fused
        if self._gpu and func in (F.rms_norm, torch.rms_norm):
            return _fused_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _fused_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Any:
    # PyTorch 2.11 takes no keywords.
    return _FusedNorm.apply(x, shape, weight, eps)  # type: ignore[no-untyped-call]


class _FusedNorm(torch.autograd.Function):
    """Storages of PyTorch's RMSNorm on a GPU, which is one kernel: it keeps the input, the weight and
    one float32 factor per row. A CPU runs several ops that keep more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Any, weight: Tensor | None, _eps: float | None) -> Tensor:
        rows = x.shape[: x.dim() - len(shape)]
        ctx.save_for_backward(x, x.new_empty(rows, dtype=torch.float32), weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, _, weight = ctx.saved_tensors
        return torch.empty_like(x), None, None if weight is None else torch.empty_like(weight), None


@contextmanager
def _without_values(
    decoder: LanguageModel, kernels: Kernels, compute: Compute
) -> Iterator[LanguageModel]:
    """Context in which tensors have no values, with ``decoder`` built again for it. Raise a `UserError`
    if its layers need values, or fail."""
    before = torch.get_default_dtype(), fast.LOGITS
    try:
        if kernels == "gpu":  # of the loss, which asks the device
            fast.LOGITS = fast.GPU_LOGITS
        torch.set_default_dtype(torch.bfloat16 if compute == "bfloat16" else torch.float32)
        device = "cpu" if compute == "autocast" else "meta"
        fake = FakeTensorMode() if compute == "autocast" else nullcontext()
        with fake, torch.device(device), _Device(kernels):
            yield outlined_like(decoder, decoder.config, device)
    except UserError:
        raise
    except _ReadsValuesError as error:
        raise UserError(
            f"router '{decoder.scheme}' can't be planned: it reads values of a tensor ({error}), and "
            "planning allocates none; take counts through modbench.routing.topk.counts_to_host"
        ) from error
    except FAULTS as error:
        raise UserError(f"router '{decoder.scheme}' {raised(error, 'a pass without values')}") from error
    finally:
        torch.set_default_dtype(before[0])
        fast.LOGITS = before[1]


def _recomputed(model: LanguageModel) -> list[nn.Module]:
    """The modules that run again under checkpointing: our layers, or the parts of transformers' layers,
    which repeat the function of a layer's class."""
    if isinstance(model, Decoder):
        return list(model.layers)
    return [part for layer in model.layers for part in layer.children()]


def _on_device(kernels: Kernels, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    # Torch leaves function modes out of a backward pass, where checkpointed layers run again.
    with _Device(kernels):
        return forward(*args, **named)


def training_activations(
    decoder: LanguageModel,
    sequences: int,
    length: int,
    *,
    compute: Compute,
    kernels: Kernels = "gpu",
    checkpoint: bool = False,
) -> int:
    """Peak bytes of a training step that accumulates gradients, in addition to weights, gradients and
    optimizer states. Raise a `UserError` if the router's layers need values."""
    with _without_values(decoder, kernels, compute) as model:
        model.train()
        for part in _recomputed(model):
            part.forward = partial(_on_device, kernels, part.forward)
        weights = list(model.parameters())
        for weight in weights:
            if weight.requires_grad:
                weight.grad = torch.empty_like(weight)
        tokens_BT = torch.zeros(sequences, length, dtype=torch.long)
        live = Live(weights)
        context = Context(checkpoint=checkpoint)
        with live:
            inputs_BT, targets_BT = tokens_BT.clone(), tokens_BT.clone()
            with torch.autocast("cpu", torch.bfloat16, enabled=compute == "autocast"):
                loss = model.loss(inputs_BT, targets_BT, context)
            (loss + context.trace.auxiliary_loss()).backward()
    return live.peak


def inference_memory(
    decoder: LanguageModel, sequences: int, length: int, *, bfloat16: bool, kernels: Kernels = "gpu"
) -> dict[str, int]:
    """Bytes at the peak of a prefill of ``sequences`` prompts of ``length`` tokens, in bfloat16 or
    float32, with nominal routing: weights, KV cache and temporary tensors. Raise a `UserError` if the
    router's layers need values."""
    compute: Compute = "bfloat16" if bfloat16 else "float32"
    with _without_values(decoder, kernels, compute) as model, torch.no_grad():
        model.eval()
        weights = list(model.parameters())
        tokens_BT = torch.zeros(sequences, length, dtype=torch.long)
        live = Live([*weights, tokens_BT])
        cache = Cache(sequences)
        with live:
            model(tokens_BT, Context(selection="causal", cache=cache, logits="last"))
        kept = cache.bytes
    parameters = sum(weight.nbytes for weight in weights)
    return {"parameters": parameters, "cache": kept, "activations": live.peak - kept}
