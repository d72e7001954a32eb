"""Batches: windows of the text in an order that seed and step determine."""

import itertools

import numpy as np
import pytest
import torch

from modbench.data.batches import Batches
from modbench.errors import UserError

TEXT_N = (np.arange(4000) * 7 % 97).astype(np.uint16)


def test_batches_depend_on_seed_and_step_alone() -> None:
    first = Batches(TEXT_N, sequence=32, batch=3, seed=7)
    again = Batches(TEXT_N, sequence=32, batch=3, seed=7)
    for step in (0, 5, 200):
        for ours, theirs in zip(first.step(step), again.step(step), strict=True):
            assert torch.equal(ours, theirs)
    other = Batches(TEXT_N, sequence=32, batch=3, seed=8)
    assert not torch.equal(first.step(0)[0], other.step(0)[0])


def test_an_epoch_shows_each_window_once_and_targets_are_the_next_tokens() -> None:
    text_N = np.arange(1000).astype(np.uint16)
    batches = Batches(text_N, sequence=32, batch=1, seed=0)
    starts = []
    for step in range(batches.windows):
        inputs_BT, targets_BT = batches.step(step)
        assert torch.equal(targets_BT, inputs_BT + 1)
        starts.append(int(inputs_BT[0, 0]))
    assert len(set(starts)) == batches.windows
    assert all((b - a) % 32 == 0 for a, b in itertools.pairwise(starts))
    again = [int(batches.step(batches.windows + step)[0][0, 0]) for step in range(batches.windows)]
    assert again != starts  # of another epoch, in another order


def test_a_text_shorter_than_a_sequence_is_refused() -> None:
    with pytest.raises(UserError, match=r"40 tokens; a sequence of 64 needs 129 or more"):
        Batches(TEXT_N[:40], sequence=64, batch=1, seed=0)
    assert Batches(TEXT_N[:129], sequence=64, batch=1, seed=0).windows == 1
