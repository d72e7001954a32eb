"""Query-key pairs that attention kernels compute on a CPU.

PyTorch's CPU kernel (flash attention) processes query rows in blocks of 32, 64 or 256, and for each
block whole blocks of 512 keys up to the last key that one of its rows sees. Its backward pass uses the
same blocks and recomputes the scores. No block of queries crosses a block of keys, so the size of the
query blocks does not matter.
"""

#: Keys per block of PyTorch's kernel.
BLOCK = 512


def executed_pairs(queries: int, keys: int) -> int:
    """Count the query-key pairs that a CPU computes for causal attention, forward or backward; query i
    sees keys 0 to i."""
    return sum(
        min(BLOCK, queries - first) * min(first + BLOCK, keys) for first in range(0, queries, BLOCK)
    )


def backward_width(head_width: int, value_width: int) -> int:
    """Multiply-accumulates per query-key pair of a fused kernel's backward pass: the recomputed scores,
    dP, dV, dQ and dK."""
    return 3 * head_width + 2 * value_width
