"""Fake CUDA tensors: models on a GPU that isn't there, the ops that they run, and where the host waits.

B sequences, H heads, T queries, C keys, P width of a head.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.cuda.amp import common as amp
from torch.utils._python_dispatch import TorchDispatchMode

import modbench
from modbench.counting import sdpa
from modbench.model import kv_cache
from modbench.model.config import ModelConfig
from modbench.model.language_model import LanguageModel
from modbench.routing import expert_router
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, preset_options, router_class, router_names
from modbench.routing.tokens import Noise

aten = torch.ops.aten
CUDA = torch.device("cuda")
#: Widths of all presets' experts are a multiple of 8, which `F.grouped_mm` needs.
SHAPE = ModelConfig(vocabulary=256, width=64, layers=2, heads=4, kv_heads=2, mlp_width=1152)
SCHEMES = [
    f"{name}{preset}"
    for name in router_names()
    for preset in ("", *(f":{preset}" for preset in router_class(name).presets))
]
#: Beginning of the files of modbench.
PACKAGE = str(modbench.__file__).removesuffix("__init__.py")


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What PyTorch runs on a GPU in place of scaled_dot_product_attention; without one it decomposes
    into matmuls. Flash attention takes no mask and no float32, and needs rows in one piece."""
    assert query.device.type == key.device.type == value.device.type == "cuda"
    if query.shape[1] != key.shape[1]:
        assert enable_gqa, f"{query.shape[1]} query heads and {key.shape[1]} key heads"
    assert all(t.stride(-1) == 1 for t in (query, key, value))
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    times = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(times, dim=1) for t in (key, value))
    if attn_mask is not None:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).expand(*query.shape[:3], key.shape[2])
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


class Watch(TorchDispatchMode):
    """Counts the ops of all threads' passes, and notes ``waits``: where the host would wait for the GPU,
    as ``what in function``."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def taken(self) -> "Watch":
        """Return what was noted so far, and begin again."""
        before = Watch()
        before.ops, before.waits = self.ops, self.waits
        self.ops, self.waits = Counter(), Counter()
        return before

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave programs to the compiler; what they run is seen."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        self.ops[name] += 1
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            blocks = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if blocks and source.device.type != result.device.type:
                self.note(f"copy to {result.device.type}")
        return result

    @property
    def reads(self) -> int:
        """How often the host read counts in one place, at most."""
        reads = [times for wait, times in self.waits.items() if wait.startswith("counts_to_host")]
        return max(reads, default=0)

    def note(self, what: str) -> None:
        """Note a wait in the innermost function of modbench that is running."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        where = frame.f_code.co_qualname.partition(".<locals>")[0] if frame else "no code of modbench"
        self.waits[f"{what} in {where}"] += 1


@contextmanager
def fake_cuda(*, uneven: bool = False) -> Iterator[Watch]:
    """Run fake CUDA tensors as a GPU would run real ones. A host read that no stand-in of `_readers`
    answers raises PyTorch's DataDependentOutputException. ``uneven``: the first count of several that
    the host reads is one less than nominal."""
    watch = Watch()
    with ExitStack() as stack:
        for place, name, stand_in in (
            (torch.nn.functional, "scaled_dot_product_attention", attend),
            (sdpa, "SDPA", attend),  # what a FlopCounter calls and puts back
            (amp, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            *_readers(watch, uneven),
        ):
            stack.enter_context(patch.object(place, name, stand_in))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(watch)
        yield watch


def _readers(watch: Watch, uneven: bool) -> Iterator[tuple[Any, str, Any]]:
    """Yield module, name and stand-in of what reads tensors: it notes the wait, and answers as for
    tensors without values. Ids of experts are checked as if they had values."""

    def counts_to_host(counts: Tensor, nominal: Sequence[int]) -> list[int]:
        watch.note("counts_to_host")
        assert counts.numel() == len(nominal)
        fewer = uneven and len(nominal) > 1 and nominal[0] > 1
        return [nominal[0] - fewer, *nominal[1:]]

    def nonzero_indices(mask: Tensor, total: int) -> Tensor:
        watch.note("nonzero_indices")
        return mask.new_empty(total, dtype=torch.long)

    generator = Noise.generator

    def noise(self: Noise, context: Any) -> torch.Generator:
        watch.note("seed of noise")
        return generator(self, context)

    places = kv_cache._places

    def on_host(*counts: Sequence[int]) -> Tensor:
        with unset_fake_temporarily() as mode:  # tensors of the CPU, whose values are at hand
            real = places(*counts)
        assert mode is not None
        return mode.from_tensor(real)

    for module in [module for name, module in sys.modules.items() if name.startswith("modbench.")]:
        for stand_in in (counts_to_host, nonzero_indices):
            if hasattr(module, stand_in.__name__):
                yield module, stand_in.__name__, stand_in
    yield Noise, "generator", noise
    yield kv_cache, "_places", on_host
    yield expert_router, "has_values", lambda tensor: not tensor.is_meta


def built(scheme: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A small model of ``scheme`` (``NAME`` or ``NAME:PRESET``) with real weights, on the CPU."""
    name, options = preset_options(scheme)
    shape = replace(SHAPE, layers=4) if name == "mixture_of_recursions" else SHAPE
    return build_model(shape, build_router(name, options)).to(dtype)


def on_cuda(model: nn.Module) -> None:
    """Replace parameters and buffers, real ones, by fake ones on the GPU: `nn.Module.to` can't."""
    fakes: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, value in kept.items():
                if value is None:
                    continue
                if value not in fakes:
                    fake = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
                    learned = isinstance(value, nn.Parameter)
                    fakes[value] = nn.Parameter(fake, value.requires_grad) if learned else fake
                kept[name] = fakes[value]


def tokens(sequences: int, length: int, vocabulary: int) -> Tensor:
    """Token ids (B, T)."""
    return torch.randint(vocabulary, (sequences, length), device=CUDA)
