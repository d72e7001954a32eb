"""A quick estimate of the machine's matmul rate, for the utilisation shown while a run trains."""

import torch

from modbench.timing.stopwatch import stopwatch

#: Seconds in all: a run waits for them.
_SECONDS = 0.1
#: Rows of the smallest matrix, short on any machine, and of the largest, which fills a GPU.
_SMALLEST, _LARGEST = 128, 8192
#: The best of them counts, so that a slow first one does not.
_SAMPLES = 3


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square matmul in ``dtype``: the best of several, of growing size as long as the next
    size fits into a tenth of a second in total. Global generators are left as they are."""
    watch = stopwatch(device)
    generator = torch.Generator(device)
    rate = 0.0
    spent = 0.0
    size = _SMALLEST
    while True:
        matrix = torch.randn(size, size, generator=generator, device=device).to(dtype)
        seconds = [watch.seconds(lambda matrix=matrix: matrix @ matrix) for _ in range(_SAMPLES)]  # type: ignore[misc]
        rate = max(rate, 2 * size**3 / min(seconds))
        spent += sum(seconds)
        if size == _LARGEST or spent + 8 * sum(seconds) > _SECONDS:
            return rate
        size *= 2
