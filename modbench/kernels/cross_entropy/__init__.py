"""Cross-entropy of the logits x W^T, by the selected kernels. ``head`` is the component that it counts
under.

N tokens, D model width, V vocabulary.
"""

from torch import Tensor

from modbench.kernels import mode
from modbench.kernels.cross_entropy import fast, plain


def cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -log softmax(x W^T)[target] in nats, in float32 or wider; the matmul follows autocast."""
    return (fast if mode() == "fast" else plain).cross_entropy(x_ND, weight_VD, targets_N)


def losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax(x W^T)[target] of each token in nats, (N,), in float32 or wider."""
    return (fast if mode() == "fast" else plain).losses(x_ND, weight_VD, targets_N)


def recomputes_logits(tokens: int, vocabulary: int) -> bool:
    """Return True if a training step of ``tokens`` tokens computes the logits a second time."""
    return mode() == "fast" and tokens > fast.part_rows(vocabulary)
