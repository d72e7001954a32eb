"""Peak bytes of a training step or a prefill, from shapes.

The model runs on tensors that have shapes and storages but no values, so nothing is allocated and any
router works: on the meta device, or under autocast, which that device lacks, on tensors that pretend to
be of the CPU. Of layers that repeat, two copies run. Routing takes its nominal counts.

B sequences, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modbench.errors import FAULTS, UserError
from modbench.hf.models import outlined_like
from modbench.kernels.cross_entropy import fast
from modbench.ledger import Workload
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.plan.without_values import Device, Kernels, Live, ReadsValuesError, Shapes
from modbench.routing.plugin_fault import raised

#: ``float32``: everything. ``autocast``: float32 weights and residual stream, matmuls in bfloat16.
#: ``bfloat16``: weights and residual stream.
Compute = Literal["float32", "autocast", "bfloat16"]


@contextmanager
def _without_values(
    decoder: LanguageModel,
    kernels: Kernels,
    compute: Compute,
    only: Sequence[int] | None = None,
    further: int = 0,
) -> Iterator[tuple[LanguageModel, Live]]:
    """Context in which tensors have no values, with ``decoder`` built again for it, and what counts
    their bytes. ``only``: the layers to build, if not all. Raise a `UserError` if its layers need
    values, or fail."""
    before = torch.get_default_dtype(), fast.LOGITS
    shaped = compute == "autocast"
    device = "cpu" if shaped else "meta"
    live = Shapes(further, shaped)
    try:
        if kernels == "gpu":  # of the loss, which asks the device
            fast.LOGITS = fast.GPU_LOGITS
        torch.set_default_dtype(torch.bfloat16 if compute == "bfloat16" else torch.float32)
        with torch.device(device), Device(kernels), live:
            yield outlined_like(decoder, decoder.config, device, only), live
    except UserError:
        raise
    except ReadsValuesError as error:
        raise UserError(
            f"router '{decoder.scheme}' can't be planned: it reads values of a tensor ({error}), and "
            "planning allocates none; take counts through modbench.routing.topk.counts_to_host"
        ) from error
    except FAULTS as error:
        raise UserError(f"router '{decoder.scheme}' {raised(error, 'a pass without values')}") from error
    finally:
        torch.set_default_dtype(before[0])
        fast.LOGITS = before[1]


def _repeated(decoder: LanguageModel, load: Workload) -> tuple[int, int, int]:
    """The layers of ``decoder`` that repeat, as far as their FLOPs for ``load``, their parameters and
    their parts' classes say: the number of the first, after how many they repeat, and how often."""
    none = 0, 0, 0
    if not isinstance(decoder, Decoder):
        return none
    of_layer: list[list[Any]] = [[] for _ in decoder.layers]
    try:
        ledger = decoder.ledger(load)
    except UserError:  # no closed form, and it can't be counted
        return none
    for (number, *name), flops in ledger:
        if number >= 0:
            of_layer[number].append((*name, flops))
    for facts, layer in zip(of_layer, decoder.layers, strict=True):
        facts += map(type, layer.modules())
        facts += ((name, p.shape, p.requires_grad) for name, p in layer.named_parameters())
    kinds = [of_layer.index(facts) for facts in of_layer]

    def times(first: int, period: int) -> int:
        unit, count = kinds[first : first + period], 1
        while kinds[first + count * period :][:period] == unit:
            count += 1
        return count

    runs = (
        (first, period, times(first, period))
        for period in range(1, len(kinds) // 3 + 1)
        for first in range(len(kinds) - 3 * period + 1)
    )
    return max((none, *runs), key=lambda run: run[1] * (run[2] - 2))


def _watch(model: LanguageModel, live: Live, kernels: Kernels, first: int, period: int) -> None:
    """Have ``live`` know which copy of the unit of ``period`` layers from ``first`` is at work, and
    checkpointed layers run with ``kernels`` when they run again."""

    def entered(unit: int, kept: int, _gradient: Tensor | None = None) -> None:
        live.unit, live.kept = unit, kept

    def run(forward: Callable[..., Any], number: int, *args: Any, **named: Any) -> Any:
        if torch._C._current_graph_task_id() >= 0:
            with Device(kernels):  # torch leaves function modes out of a backward pass
                return forward(*args, **named)
        if period and number == first:
            entered(1, 0)
            if args[0].requires_grad:
                args[0].register_hook(partial(entered, 0, 2))
        out = forward(*args, **named)
        if period and number == first + period - 1:
            entered(2, 1)
            out.register_hook(partial(entered, 1, 2))
        elif period and number == first + 2 * period - 1:
            entered(0, 1)
            out.register_hook(partial(entered, 2, 1))
        return out

    for number, part in enumerate(_recomputed(model)):
        part.forward = partial(run, part.forward, number)


def _recomputed(model: LanguageModel) -> list[nn.Module]:
    """The modules that run again under checkpointing: our layers, or the parts of transformers' layers,
    which repeat the function of a layer's class."""
    if isinstance(model, Decoder):
        return list(model.layers)
    return [part for layer in model.layers for part in layer.children()]


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
    first, period, times = _repeated(decoder, Workload.uniform(sequences, length, "train"))
    layers = [*range(len(decoder.layers))]
    only = layers[: first + 2 * period] + layers[first + times * period :] if period else None
    with _without_values(decoder, kernels, compute, only, max(0, times - 2)) as (model, live):
        model.train()
        _watch(model, live, kernels, first, period)
        weights = list(model.parameters())
        for weight in weights:
            if weight.requires_grad:
                weight.grad = torch.empty_like(weight)
        tokens_BT = torch.zeros(sequences, length, dtype=torch.long)
        context = Context(checkpoint=checkpoint)
        live.start(weights)
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
    with _without_values(decoder, kernels, compute) as (model, live), torch.no_grad():
        model.eval()
        weights = list(model.parameters())
        tokens_BT = torch.zeros(sequences, length, dtype=torch.long)
        cache = Cache(sequences)
        live.start([*weights, tokens_BT])
        model(tokens_BT, Context(selection="causal", cache=cache, logits="last"))
        kept = cache.bytes
    parameters = sum(weight.nbytes for weight in weights)
    return {"parameters": parameters, "cache": kept, "activations": live.peak - kept}
