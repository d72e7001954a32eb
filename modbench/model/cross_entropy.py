"""Cross-entropy of the head's logits without holding them: some rows at a time, gradients at once.

Logits of B x T tokens are a model's largest tensor, and a plain backward pass holds three of them. Here
each part of the rows is scored, and the gradients of its inputs and its share of the head's are taken,
before the next part is looked at. The matmuls are those of the plain way.

N tokens, D model width, V vocabulary; R rows of a part.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from modbench.ledger import component
from modbench.model.kernels import autocast_dtype

#: Logits of a part: few enough to stay in a CPU's cache, or enough to keep a GPU busy.
LOGITS, LOGITS_GPU = 2**20, 2**26
#: Values that a CPU casts at a time, which stay in its cache.
CAST = 2**18


def cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -log softmax(x W^T)[target] in nats, in float32 or wider; matmuls as autocast has them.
    Differentiable once, in ``x_ND`` and ``weight_VD``. Not for float16: the gradient of a row's logits
    is rounded to the matmuls' dtype here, before a scaled loss could keep small ones above 0."""
    if torch.is_grad_enabled() and (x_ND.requires_grad or weight_VD.requires_grad):
        if torch.compiler.is_compiling():
            x_ND, weight_VD = _cast(x_ND), _cast(weight_VD)
            return _scored(x_ND, weight_VD, targets_N)[0]
        return _CrossEntropy.apply(x_ND, weight_VD, targets_N)  # type: ignore[no-any-return, no-untyped-call]
    return losses(x_ND, weight_VD, targets_N).mean()


@torch.no_grad()
def losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax(x W^T)[target] of each token in nats, (N,), in float32 or wider."""
    x_ND, weight_VD = _cast(x_ND), _cast(weight_VD)
    parts = []
    for x_RD, targets_R in _parts(x_ND, targets_N, len(weight_VD)):
        with component("head"):
            logits_RV = _wide(F.linear(x_RD, weight_VD))
        # Not F.cross_entropy, to which a target of -100 is none and costs nothing.
        parts.append(-logits_RV.log_softmax(-1).gather(1, targets_R[:, None])[:, 0])
    return torch.cat(parts)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        x, weight = _cast(x_ND.detach()), _cast(weight_VD.detach())
        of_x, of_weight = ctx.needs_input_grad[:2]
        loss, gradient_ND, gradient_VD = _with_gradients(x, weight, targets_N, of_x, of_weight)
        of_weight_VD = None if gradient_VD is None else gradient_VD.to(weight_VD.dtype)
        ctx.save_for_backward(gradient_ND, of_weight_VD)
        ctx.dtype = x_ND.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        of_x, of_weight = ctx.saved_tensors
        return (
            None if of_x is None else (of_x * gradient).to(ctx.dtype),
            None if of_weight is None else of_weight * gradient,
            None,
        )


def _with_gradients(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, of_x: bool, of_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The mean, and its gradients in what it is asked for."""
    gradient_ND = torch.empty_like(x_ND) if of_x else None
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    gradient_VD = torch.zeros_like(weight_VD, dtype=wide) if of_weight else None
    total = x_ND.new_zeros((), dtype=wide)
    first = 0
    for x_RD, targets_R in _parts(x_ND, targets_N, len(weight_VD)):
        with component("head"):
            logits_RV = _wide(x_RD @ weight_VD.T)
            logs_RV, target_R1 = logits_RV.log_softmax(-1), targets_R[:, None]
            log_R1 = logs_RV.gather(1, target_R1)
            total -= log_R1.sum()
            # The gradient of a row's logits: its probabilities, less 1 at the target.
            slope_RV = logs_RV.exp_().scatter_(1, target_R1, log_R1.exp() - 1)
            slope_RV = slope_RV.div_(len(x_ND)).to(x_ND.dtype)
            if gradient_ND is not None:
                gradient_ND[first : first + len(x_RD)] = slope_RV @ weight_VD
            if gradient_VD is not None:
                _add(slope_RV.T @ x_RD, gradient_VD)
        first += len(x_RD)
    return total / len(x_ND), gradient_ND, gradient_VD


def _add(product_VD: Tensor, to_VD: Tensor) -> None:
    """Some rows at a time: of another dtype, a CPU casts all that it is given before it adds."""
    rows = max(1, CAST // product_VD.shape[1])
    if product_VD.dtype == to_VD.dtype or on_gpu(product_VD):
        rows = len(product_VD)
    for some_RD, to_RD in zip(product_VD.split(rows), to_VD.split(rows), strict=True):
        to_RD += some_RD


@torch.library.custom_op("modbench::cross_entropy", mutates_args=())
def _scored(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For torch.compile, which takes it as one op: the mean and both gradients."""
    loss, of_x, of_weight = _with_gradients(x_ND, weight_VD, targets_N, True, True)
    assert of_x is not None
    assert of_weight is not None
    return loss, of_x, of_weight


@_scored.register_fake
def _(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    loss = x_ND.new_empty((), dtype=wide)
    return loss, torch.empty_like(x_ND), torch.empty_like(weight_VD, dtype=wide)


def _keep(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], output[2])
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    ctx.mark_non_differentiable(output[1], output[2])


def _scaled(ctx: Any, gradient: Tensor, *none: Tensor | None) -> tuple[Tensor, Tensor, None]:
    (of_x, of_weight), (x, weight) = ctx.saved_tensors, ctx.dtypes
    return (of_x * gradient).to(x), (of_weight * gradient).to(weight), None


_scored.register_autograd(_scaled, setup_context=_keep)


def part_rows(vocabulary: int, *, gpu: bool) -> int:
    """Rows of a part."""
    return max(1, (LOGITS_GPU if gpu else LOGITS) // vocabulary)


def on_gpu(x: Tensor) -> bool:
    """Whether ``x`` is on a GPU, or, where memory is planned, stands for what is on one."""
    if has_torch_function((x,)):
        return handle_torch_function(on_gpu, (x,), x)  # type: ignore[no-any-return]
    return x.is_cuda


def _parts(x_ND: Tensor, targets_N: Tensor, vocabulary: int) -> "zip[tuple[Tensor, Tensor]]":
    rows = part_rows(vocabulary, gpu=on_gpu(x_ND))
    return zip(x_ND.split(rows), targets_N.split(rows), strict=True)


def _cast(value: Tensor) -> Tensor:
    """As autocast would have it in a matmul; inside a custom function it does not reach."""
    dtype = autocast_dtype(value)
    return value if dtype is None else value.to(dtype)


def _wide(logits_RV: Tensor) -> Tensor:
    return logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
