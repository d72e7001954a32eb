"""Ops without a matmul, in addition to those that PyTorch tags as pointwise or declares to be views:
reductions, indexing, copies, factories, normalisations, losses, optimizers, and their backward passes.
"""

import re
from pathlib import Path

import torch
from torch._ops import OpOverload

_SUFFIX = re.compile(r"(_(backward|forward|functional|impl|data|no_training|reduce|elemt))+$")

#: Stems of names in ``aten``: without underscores at the ends, without a suffix of `_SUFFIX`, and with
#: ``nd`` for one to three dimensions.
FREE = frozenset(Path(__file__).with_suffix(".txt").read_text().split())
# The ``prims`` of PyTorch's decompositions are elementwise.
FREE_PREFIXES = ("aten::_foreach_", "aten::_fused_adam", "prim::", "prims::", "profiler::")
#: Libraries of collectives, and of the copies around them.
COLLECTIVES = {
    "c10d",
    "_c10d_functional",
    "_c10d_functional_autograd",
    "c10d_functional",
    "_dtensor",
    "fsdp",
}
NOT_FREE_PREFIXES = ("prims::fft_", "prims::svd")


def is_free(func: OpOverload) -> bool:
    """Return True if an op is known to contain no matmul: it is pointwise, a view, or listed."""
    if torch.Tag.pointwise in func.tags or func.is_view:
        return True
    name = func._schema.name
    if name.startswith(FREE_PREFIXES) and not name.startswith(NOT_FREE_PREFIXES):
        return True
    space, _, plain = name.partition("::")
    if space in COLLECTIVES:
        return True
    if space == "aten":
        stem = re.sub(r"[123]d(?=_|$)", "nd", _SUFFIX.sub("", plain.strip("_")))
        if {plain, stem} & FREE or plain.endswith("_copy"):  # the copy of a view
            return True
    # The tag is missing from overloads that write into an argument.
    packet = func.overloadpacket
    return any(torch.Tag.pointwise in getattr(packet, kind).tags for kind in packet.overloads())
