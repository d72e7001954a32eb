"""The counters that `compare_counters` compares, each asked in the best way it offers: FLOPs, 2 per
multiply-accumulate, of matmuls where it can tell them from the rest.

An adapter gets a case ready to run and returns what its counter says. One that can only call a module
forward is not asked about the others.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from counter_case import Work
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Tool:
    """``package``: what pip calls it. ``asked``: how, in a line."""

    name: str
    package: str
    asked: str
    count: Callable[[Work], float | int]
    forward_only: bool = False


class _One(nn.Module):
    """``inner`` of one argument, a tuple; it keeps the error that a tool swallows. Some tools fail on a
    module without parameters, so it has one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        if not list(inner.parameters()):
            self.parameter = nn.Parameter(torch.zeros(()))
        self.error: Exception | None = None

    def forward(self, *inputs: Any) -> Any:
        try:
            return self.inner(*(inputs[0] if isinstance(inputs[0], tuple) else inputs))
        except Exception as error:
            self.error = error
            raise


def _modbench(work: Work) -> int:
    from modbench import FlopCounter

    with FlopCounter() as counter:
        work.run()
    return counter.total


def _torch(work: Work) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work.run()
    return counter.get_total_flops()


def _profiler(work: Work) -> int:
    from torch.profiler import ProfilerActivity, profile

    work.run()  # or it would count what is compiled on first use
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        work.run()
    pointwise = ("aten::mul", "aten::add")
    return sum(event.flops for event in profiled.key_averages() if event.key not in pointwise)


def _fvcore(work: Work) -> int:
    from modbench.accounting.other_counters import fvcore_analysis

    assert work.module is not None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return 2 * int(fvcore_analysis(work.module, work.inputs).total())


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _sdpa(inputs: list[Any], outputs: list[Any]) -> int:
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _grouped(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(inputs[0])) * _shape(inputs[1])[-1]


def _fused_attention(inputs: list[Any], outputs: list[Any]) -> int:
    sequences, queries, width = _shape(inputs[0])
    keys = _shape(inputs[1])[1]
    return sequences * (2 * (queries + keys) * width * width + 2 * queries * keys * width)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Operands taken from left to right."""
    terms, result = inputs[0].toIValue().replace(" ", "").split("->")
    shapes = [_shape(operand) for operand in inputs[1].node().inputs()]
    sizes: dict[str, int] = {}
    names = []
    for term, shape in zip(terms.split(","), shapes, strict=True):
        hidden = len(shape) - len(term.replace("...", ""))
        named = term.replace("...", "".join(f"{place}" for place in range(hidden))[::-1])
        for letter, size in zip(named, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
        names.append(set(named))
    total, left = 0, names[0]
    for position, right in enumerate(names[1:], start=2):
        total += math.prod(sizes[letter] for letter in left | right)
        later = set(result).union(*names[position:]) | {name for name in sizes if name.isdigit()}
        left = (left | right) & later
    return total


def fvcore_with_handles(work: Work) -> Any:
    """fvcore's analysis, with handles for the ops that it lacks and without the one too many."""
    from modbench.accounting.other_counters import fvcore_analysis

    assert work.module is not None
    analysis = fvcore_analysis(work.module, work.inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _sdpa)
    analysis.set_op_handle("aten::_grouped_mm", _grouped)
    analysis.set_op_handle("aten::_native_multi_head_attention", _fused_attention)
    analysis.set_op_handle("aten::einsum", _einsum)
    # It is no matmul; setting the handle to None would not remove it.
    analysis._op_handles.pop("aten::layer_norm", None)
    return analysis


def _fvcore_with_handles(work: Work) -> float:
    with torch.no_grad():
        return 2 * fvcore_with_handles(work).total()


def _deepspeed(work: Work) -> int:
    from deepspeed.profiling.flops_profiler import get_model_profile

    _, macs, _ = get_model_profile(
        work.module, args=list(work.inputs), print_profile=False, as_string=False
    )
    return 2 * macs


def _calflops(work: Work) -> int:
    from calflops import calculate_flops

    assert work.module is not None
    _, macs, _ = calculate_flops(
        _One(work.module), args=list(work.inputs), print_results=False, output_as_string=False
    )
    return 2 * macs


def _ptflops(backend: str) -> Callable[[Work], int]:
    def count(work: Work) -> int:
        from ptflops import get_model_complexity_info

        assert work.module is not None
        module = _One(work.module)
        macs, _ = get_model_complexity_info(
            module,
            (1,),
            input_constructor=lambda shape: work.inputs,
            print_per_layer_stat=False,
            as_strings=False,
            backend=backend,
        )
        if macs is None:
            raise module.error or RuntimeError("no figure")
        return 2 * macs

    return count


def _thop(work: Work) -> float:
    from thop import profile

    return 2 * profile(work.module, work.inputs, verbose=False)[0]


def _torchinfo(work: Work) -> int:
    from torchinfo import summary

    return 2 * summary(work.module, input_data=list(work.inputs), verbose=0).total_mult_adds


TOOLS = (
    Tool(name="modbench", package="modbench", asked="`FlopCounter().total`", count=_modbench),
    Tool(
        name="torch",
        package="torch",
        asked="`torch.utils.flop_counter.FlopCounterMode`",
        count=_torch,
    ),
    Tool(
        name="torch.profiler",
        package="torch",
        asked="`profile(with_flops=True)`, without its figures for `mul` and `add`",
        count=_profiler,
    ),
    Tool(
        name="fvcore",
        package="fvcore",
        asked="`FlopCountAnalysis(...).total()`, twice",
        count=_fvcore,
        forward_only=True,
    ),
    Tool(
        name="fvcore + handles",
        package="fvcore",
        asked="with handles of ours for SDPA, grouped and fused attention and einsum; `layer_norm` off",
        count=_fvcore_with_handles,
        forward_only=True,
    ),
    Tool(
        name="deepspeed",
        package="deepspeed",
        asked="`get_model_profile`, its MACs twice",
        count=_deepspeed,
        forward_only=True,
    ),
    Tool(
        name="calflops",
        package="calflops",
        asked="`calculate_flops`, its MACs twice",
        count=_calflops,
        forward_only=True,
    ),
    Tool(
        name="ptflops, aten",
        package="ptflops",
        asked='`get_model_complexity_info(backend="aten")`, twice',
        count=_ptflops("aten"),
        forward_only=True,
    ),
    Tool(
        name="ptflops, pytorch",
        package="ptflops",
        asked='`get_model_complexity_info(backend="pytorch")`, twice',
        count=_ptflops("pytorch"),
        forward_only=True,
    ),
    Tool(name="thop", package="thop", asked="`profile`, twice", count=_thop, forward_only=True),
    Tool(
        name="torchinfo",
        package="torchinfo",
        asked="`summary(...).total_mult_adds`, twice",
        count=_torchinfo,
        forward_only=True,
    ),
)
