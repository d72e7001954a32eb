"""Cross-entropy of the logits x W^T, by the selected kernels.

N tokens, D model width, V vocabulary.
"""

from torch import Tensor

from modbench.kernels import mode
from modbench.kernels.cross_entropy import fast, plain
from modbench.kernels.cross_entropy.plain import Reduction as Reduction


def cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """-log softmax(x W^T)[target] in nats, in float32 or wider: the mean, or with ``"none"`` the loss of
    each token, (N,). The matmul follows autocast."""
    kernel = fast if mode() == "fast" else plain
    return kernel.cross_entropy(x_ND, weight_VD, targets_N, reduction)


def recomputes_logits(tokens: int, weight_VD: Tensor) -> bool:
    """Return True if a training step of ``tokens`` tokens computes the logits a second time."""
    return mode() == "fast" and tokens > fast.part_rows(len(weight_VD), weight_VD.device)
