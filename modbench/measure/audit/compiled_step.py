"""Part of probe 9: where training steps are compiled, the traced program spends what the ledger says.

The counter runs compiled code uncompiled, so it does not see a branch that is taken only under
torch.compile. Here Dynamo traces the step, and the traced graphs are counted.

B sequences, T tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from modbench.counting.counter import FlopCounter
from modbench.ledger import Ledger, Workload
from modbench.measure.audit.finding import Subject, device_of
from modbench.model.context import Context
from modbench.train.compiled import Compile, compiles, losses_of
from modbench.train.numerics import autocast, precision

#: A traced graph and the arguments of one call.
Call = tuple[fx.GraphModule, tuple[Any, ...]]


def miscounted_when_compiled(subject: Subject, tokens_BT: Tensor, wanted: Compile = "auto") -> str:
    """Describe how the forward FLOPs of a compiled training step differ from the ledger's; empty if they
    do not, or if ``wanted`` does not compile on the device of the model. Layers with data-dependent
    shapes run eagerly and are left out. Fewer FLOPs are accepted where Dynamo splits the program in more
    parts than that, since what runs between the parts is not seen."""
    device = device_of(subject.model)
    if not compiles(wanted, device):
        return ""
    model, calls, context = subject.twin().train(), list[Call](), Context()
    with autocast(precision("auto", device), device):
        losses = losses_of(model, wanted, backend=_recorder(calls))
        losses(tokens_BT, tokens_BT.roll(-1, 1), context)
        seen = sum(_forward_flops(*call) for call in calls)
        eager = {n for n, layer in enumerate(model.layers) if layer.has_data_dependent_shapes}
    sequences, tokens = tokens_BT.shape
    lengths, counts = (tokens,) * sequences, context.trace.counts
    ledger = model.loss_ledger(Workload(lengths=lengths, phase="train", counts=counts, padding=True))
    compiled = Ledger({key: flops for key, flops in ledger if key[0] not in eager})
    off = compiled.total("full", "forward") - seen
    if off == 0 or (off > 0 and len(calls) > 1 and not eager):
        return ""
    return f"{off:+d} in the forward pass of the compiled training step, which torch.compile traces"


def _recorder(calls: list[Call]) -> Callable[..., Callable[..., Any]]:
    """A backend of torch.compile that runs the traced graphs as they are and records each call."""

    def backend(graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            calls.append((graph, arguments))
            return graph(*arguments)

        return run

    return backend


def _forward_flops(graph: fx.GraphModule, arguments: tuple[Any, ...]) -> int:
    with FlopCounter() as counter, torch.random.fork_rng():
        graph(*arguments)
    return counter.ledger.total("full", "forward")
