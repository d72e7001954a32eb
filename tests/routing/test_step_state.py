"""State of routers over the passes of a step."""

import torch
from torch import Tensor, nn

from modbench.routing.step_state import Steered, StepState

INFINITE = float("inf")


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.1, -INFINITE, INFINITE]))
        self.register_buffer("least", torch.tensor(INFINITE))
        self.register_buffer("average", torch.tensor(1.0))


class Counted(Steered):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("number", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(0), persistent=False)

    def move(self, seen: Tensor) -> None:
        self.number += seen


def test_infinite_buffers_stay_or_become_the_mean_of_what_passes_make_of_them() -> None:
    model = Buffers()
    mask = model.mask.clone()
    state = StepState(model)
    for value in (2.0, 4.0):
        model.least.fill_(value)
        model.average += value
        state.end_pass(first=value == 2.0)
    state.end(lambda moves: moves, 2)
    assert torch.equal(model.mask, mask)
    assert model.least == 3.0
    assert model.average == 4.0


def test_steered_buffers_move_by_what_each_pass_has_seen() -> None:
    model = Counted()
    model.update(torch.tensor(100))  # of a step before
    model.number.zero_()
    state = StepState(model)
    for seen in (1, None, 4):
        if seen:
            model.update(torch.tensor(seen))
        state.end_pass(first=not model.number)
    state.end(lambda moves: moves, 3)
    assert model.number == 5
