"""A run's state on disk: where the disk takes no more, a sentence, and what was there is still there."""

import resource
from contextlib import contextmanager
from pathlib import Path

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


def test_the_weights_of_the_last_points_are_kept_also_by_a_run_that_continues(tmp_path: Path) -> None:
    model = build_model(SHAPE, build_router("vanilla"))

    def after(step: int) -> list[str]:
        checkpoint.save_point(tmp_path, model, step=step, keep=2, key="run")
        return sorted(path.stem.lstrip("0") for path in (tmp_path / "points").iterdir())

    assert [after(step) for step in (10, 20, 30)] == [["10"], ["10", "20"], ["20", "30"]]
    # Killed, and continued from a checkpoint before step 20.
    (tmp_path / "points" / "000000040.half").touch()
    assert [after(step) for step in (20, 30)] == [["20"], ["20", "30"]]
    checkpoint.load_weights(checkpoint.point_weights(tmp_path, 20), model, key="run")
    checkpoint.save_point(tmp_path / "other", model, step=10, keep=0)
    assert not (tmp_path / "other").exists()
    for step in (10, 20, 30):
        checkpoint.save_point(tmp_path, model, step=step, keep=None, key="run")
    assert len(list((tmp_path / "points").iterdir())) == 3
