"""The definition of the cross-entropy: all logits in one matmul.

N tokens, D model width, V vocabulary.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.kernels import matmul_dtype
from modbench.ledger import component

Reduction = Literal["mean", "none"]
#: A target that no caller has: PyTorch leaves out the loss of one class, and here all others are errors.
_NO_TARGET = torch.iinfo(torch.int64).min


def cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """-log softmax(x W^T)[target] in nats, in float32 or wider; the matmul follows autocast. Raise an
    `IndexError` for a target outside the vocabulary, -100 included."""
    dtype = matmul_dtype(x_ND)
    with component("head"):
        logits_NV = F.linear(x_ND.to(dtype), weight_VD.to(dtype))
    logits_NV = logits_NV.to(torch.promote_types(dtype, torch.float32))
    return F.cross_entropy(logits_NV, targets_N.long(), reduction=reduction, ignore_index=_NO_TARGET)
