"""Part of probe 10: initial weights are complete, repeatable, and shared with the dense model."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from modbench.audit.finding import Subject, unmoved
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router


def badly_initialised(subject: Subject) -> str:
    """Name a parameter or buffer that is never filled, that differs between two models of the same
    configuration, router and seed, or that starts unlike the dense model's; empty if there is none."""
    arguments = (subject.model.config, subject.model.router, subject.seed)
    plain = _tensors(build_model(*arguments))
    with _new_memory_is_nan():
        again = _tensors(build_model(*arguments))
    for name, value in again.items():
        # A value that is NaN on purpose is NaN in both models.
        if (value.isnan() & ~plain[name].isnan()).any():
            return f"{name} is never filled; set it in initialise"
        if not unmoved(value, plain[name]):
            return (
                f"{name} differs between two models of the same seed; draw it with torch, which is "
                "seeded then, and not with numpy or random"
            )
    if name := _unlike_dense(subject, plain):
        return (
            f"{name} starts unlike the dense model's; leave the parts of modbench.model as their own "
            "initialise fills them"
        )
    return ""


@contextmanager
def _new_memory_is_nan() -> Iterator[None]:
    # torch.use_deterministic_algorithms does the same, and imports the compiler, which takes a second.
    mode = torch.get_deterministic_debug_mode()
    deterministic: Any = torch.utils.deterministic  # type: ignore[attr-defined]
    fills = deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        deterministic.fill_uninitialized_memory = fills


def _unlike_dense(subject: Subject, initial: Mapping[str, Tensor]) -> str:
    """Name a parameter of ``initial`` that the dense model has, too, in a module of the same class, with
    other values; empty if there is none."""
    dense = build_model(subject.model.config, build_router("vanilla"), subject.seed)
    for name, shared in _tensors(dense).items():
        for candidate in (name, re.sub(r"^(layers\.\d+\.)", r"\1block.", name)):
            value = initial.get(candidate)
            if value is None or value.shape != shared.shape:
                continue
            if _holder(subject.model, candidate) is _holder(dense, name) and not unmoved(value, shared):
                return candidate
    return ""


def _holder(model: RoutedDecoder, name: str) -> type:
    """The class that holds the parameter ``name``, itself or in modules of PyTorch."""
    while name := name.rpartition(".")[0]:
        kind = type(model.get_submodule(name))
        if not kind.__module__.startswith("torch."):
            return kind
    return RoutedDecoder


def _tensors(model: RoutedDecoder) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
