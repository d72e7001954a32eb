"""What attention kernels run, where that is not what attention needs. No torch.

PyTorch's CPU kernel (flash attention) takes query rows in blocks of 32, 64 or 256, by their number, and
for each block whole blocks of 512 keys until the last key that a row of it may see. Its backward pass
goes through the same blocks, and computes the scores again. No block of queries crosses a block of keys,
so the size of the first doesn't matter.
"""

#: Keys of a block of PyTorch's.
PYTORCH_BLOCK = 512


def executed_pairs(queries: int, keys: int, block: int = PYTORCH_BLOCK) -> int:
    """Query-key pairs that a CPU computes for causal attention, forward or backward, in blocks of
    ``block``, by default PyTorch's; query i sees keys 0 to i."""
    return sum(
        min(block, queries - first) * min(first + block, keys) for first in range(0, queries, block)
    )


def is_fused(head_width: int, value_width: int) -> bool:
    """Whether a CPU runs the fused kernel, and not matmuls that keep the whole square of scores (then
    the square is executed, and its backward pass is twice the forward)."""
    return head_width == value_width


def backward_width(head_width: int, value_width: int) -> int:
    """Multiply-accumulates per query-key pair of a fused kernel's backward pass: the scores again, dP,
    dV, dQ and dK."""
    return 3 * head_width + 2 * value_width
