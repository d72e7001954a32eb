"""A run's state on disk: where the disk takes no more, a sentence, and what was there is still there."""

import resource
from contextlib import contextmanager

import pytest
import torch

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train import checkpoint

SHAPE = ModelConfig(vocabulary=300, width=16, layers=2, heads=2)


@contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 20_000])
@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors"])
def test_a_disk_that_takes_no_more_gets_a_sentence_and_the_old_file_stays(tmp_path, name, size):
    model = build_model(SHAPE, build_router("vanilla"))
    path = tmp_path / name
    path.write_bytes(b"old")
    state = {"model": model.state_dict(), "random": torch.get_rng_state()}
    write = {
        "checkpoint.pt": lambda: checkpoint.save(path, state),
        "model.safetensors": lambda: checkpoint.save_weights(path, model),
    }[name]
    with files_of_at_most(size), pytest.raises(UserError) as caught:
        write()
    assert str(caught.value).startswith(f"{path}: can't be written (")
    assert "File too large" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
