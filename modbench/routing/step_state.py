"""State of routers over the passes of a training step: its micro-batches, in each of its processes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Steered(nn.Module):
    """A module whose buffers move by whole numbers that a pass has ``seen``, such as loads. A step of
    several passes moves them once, by the sum."""

    seen: Tensor  #: by the last pass; a buffer that is not stored

    @torch.no_grad()
    def update(self, seen: Tensor) -> None:
        """Move the buffers by what a pass has ``seen``."""
        self.seen.copy_(seen)
        self.move(seen)

    def move(self, seen: Tensor) -> None:
        """Move the buffers by what was ``seen``."""
        raise NotImplementedError


class StepState:
    """The stored buffers of ``model`` in a step of several passes, each of which finds them as the step
    did. The step moves averages by the mean of what its passes move them by, the buffers of `Steered`
    modules by all that was seen, and other whole numbers as its first pass does."""

    def __init__(self, model: nn.Module) -> None:
        self._steered = [part for part in model.modules() if isinstance(part, Steered)]
        self._places = [
            (part, name)
            for part in model.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None and name not in part._non_persistent_buffers_set
        ]
        self._before = [buffer.clone() for buffer in self._buffers()]
        #: What moves are measured from; of infinite values 0, as inf - inf is undefined.
        self._bases = [before.nan_to_num(0, 0, 0) for before in self._before]
        moving = [*self._before, *(part.seen for part in self._steered)]
        wide = [torch.float64 if of.is_floating_point() else torch.int64 for of in moving]
        for part in self._steered:
            part.seen.zero_()
        self._moves = [torch.zeros_like(of, dtype=kind) for of, kind in zip(moving, wide, strict=True)]

    def _buffers(self) -> list[Tensor]:
        """The buffers as they are now: a pass replaces some tensors."""
        return [part._buffers[name] for part, name in self._places]  # type: ignore[misc]

    @torch.no_grad()
    def end_pass(self, *, first: bool) -> None:
        """Note what a pass has moved, and move it back; ``first``: of the passes of all processes."""
        stored = len(self._before)
        for move, buffer, before, base in zip(
            self._moves[:stored], self._buffers(), self._before, self._bases, strict=True
        ):
            if first or buffer.is_floating_point():
                move += buffer.to(move.dtype) - base.to(move.dtype)
            buffer.copy_(before)
        for move, part in zip(self._moves[stored:], self._steered, strict=True):
            move += part.seen
            part.seen.zero_()

    @torch.no_grad()
    def end(self, total: Callable[[Tensor], Tensor], passes: int) -> None:
        """Move the buffers by what all ``passes`` have moved; ``total`` sums over processes."""
        for kind in (torch.float64, torch.int64):
            moves = [move for move in self._moves if move.dtype == kind]
            if moves:
                sums = total(torch.cat([move.flatten() for move in moves]))
                for move, part in zip(moves, sums.split([of.numel() for of in moves]), strict=True):
                    move.copy_(part.view_as(move))
        stored = len(self._before)
        for place, buffer, base, move in zip(
            self._places, self._buffers(), self._bases, self._moves[:stored], strict=True
        ):
            if not isinstance(place[0], Steered):
                buffer.copy_(base + (move / passes if move.is_floating_point() else move))
        for part, seen in zip(self._steered, self._moves[stored:], strict=True):
            part.move(seen)
