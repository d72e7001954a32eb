"""The few operations that have a fast path, each in a folder of its own next to its plain definition.

``MODBENCH_KERNELS=plain`` in the environment selects the definitions, ``fast`` (the default) the fast
paths. README.md lists them with their measured gains.
"""

import os
from typing import Literal, cast

import torch
from torch import Tensor

from modbench.errors import UserError, known_names

Mode = Literal["plain", "fast"]
VARIABLE = "MODBENCH_KERNELS"


def mode() -> Mode:
    """Return the selected kernels. Raise a `UserError` if the environment variable has another value."""
    selected = os.environ.get(VARIABLE, "fast")
    if selected not in ("plain", "fast"):
        raise UserError(
            f"{VARIABLE} is '{selected}' in the environment; {known_names(selected, ('plain', 'fast'))}"
        )
    return cast(Mode, selected)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a matmul of ``x``. Autocast leaves float64 as it is, and the meta device has
    no autocast."""
    kind = x.device.type
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)
