"""Tensors that are read from files, moved off the cache line: MKL rounds by alignment on some
processors, and safetensors maps files into memory 8 bytes off. ``MODBENCH_TESTS_MISALIGNED=1`` moves
all."""

import sys
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor
from torch.utils._pytree import tree_map_only

_LINE, _OFF = 64, 8  # bytes
_OPEN = safetensors.safe_open


def misaligned(tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` whose memory begins 8 bytes after a cache line; itself if it is no numbers of
    a matmul: PyTorch reads the state of a generator from the start of its storage."""
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return tensor
    size = tensor.element_size()
    room = torch.empty(tensor.numel() + _LINE // size, dtype=tensor.dtype)
    first = (_OFF - room.data_ptr()) % _LINE // size
    moved = room[first : first + tensor.numel()].view(tensor.shape)
    return moved.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


class _File:
    """An open safetensors file whose tensors are misaligned."""

    def __init__(self, *words: Any, **named: Any) -> None:
        self.file = _OPEN(*words, **named)

    def __enter__(self) -> "_File":
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def get_tensor(self, name: str) -> Tensor:
        return misaligned(self.file.get_tensor(name))


def _moved(read: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *words, **named: tree_map_only(Tensor, misaligned, read(*words, **named))


def misalign_tensors_of_files() -> None:
    """Misalign every tensor that this process reads from a file from now on."""
    read = transformers.PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: type, *words: Any, **named: Any) -> Any:
        loaded = read(cls, *words, **named)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = misaligned(tensor.data)
        return loaded

    transformers.PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    torch.load = _moved(torch.load)
    files = safetensors.torch
    new = {files.load_file: _moved(files.load_file), _OPEN: _File}
    for module in [*sys.modules.values()]:  # some have imported them by name
        for name in ("load_file", "safe_open"):
            if (old := vars(module).get(name)) in new:
                setattr(module, name, new[old])
