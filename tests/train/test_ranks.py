"""Several processes train as one does: losses, weights, FLOPs and counted steps; on CPUs with gloo."""

import json
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_training import SHAPE, trained

from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.routing.tokens import Noise
from modbench.train.rank_group import RankGroup

SCRIPT = Path(__file__).with_name("rank_training.py")
#: Schemes whose routing in training is of each sequence by itself.
SCHEMES: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "mod": {"capacity": 0.25},
    "expert_choice": {"experts": 4},
    "token_choice": {"experts": 4, "balance_scope": "sequence"},
}
SLOW = pytest.mark.slow
MODES = [
    ("mod", 2),
    *(
        pytest.param(*mode, marks=SLOW)
        for mode in (("vanilla", 2), ("token_choice", 2), ("expert_choice", 2), ("mod", 4))
    ),
]


@cache
def alone(router: str, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder.mkdir()
    found, weights = trained(router, folder, options=SCHEMES[router])
    return asdict(found), weights


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("alone")
    return lambda router: alone(router, folder / router)


def together(folder: Path, router: str, processes: int, **more: Any) -> tuple[Any, Any, str]:
    """The findings of torchrun's processes, their weights, and their output."""
    folder.mkdir(exist_ok=True)
    wanted = {"router": router, "options": SCHEMES[router], "parallel": {"data": processes}, **more}
    (folder / "wanted.json").write_text(json.dumps(wanted))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"]
    command += ["--log-dir", str(folder / "logs")]
    command += [f"--nproc-per-node={processes}", str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if (folder / "killed").exists():
        assert done.returncode != 0
        assert not (folder / "found.json").exists()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "found.json").read_text())
    return found, torch.load(folder / "weights.pt"), done.stderr


def check_equal(found: Any, weights: Any, of_one: Any) -> None:
    """``found`` as one process finds it, but for rounding."""
    expected, expected_weights = of_one
    assert found["end"] == expected["end"]
    assert found["counted_steps"] == 3
    assert not found["miscounted"]
    assert not found["recharged"]
    for ours, theirs in zip(found["curve"], expected["curve"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["heldout_loss"] == pytest.approx(theirs["heldout_loss"], rel=1e-3)
    for name, weight in expected_weights.items():
        assert weights[name].shape == weight.shape
        if weight.is_floating_point() and "threshold" not in name:
            assert torch.allclose(weights[name], weight, atol=1e-3), name


@pytest.mark.parametrize(("router", "processes"), MODES)
def test_processes_train_as_one_does(router: str, processes: int, tmp_path: Path, of_one: Any) -> None:
    found, weights, _ = together(tmp_path, router, processes)
    check_equal(found, weights, of_one(router))


@SLOW
def test_micro_batches_of_processes(tmp_path: Path, of_one: Any) -> None:
    found, weights, _ = together(tmp_path, "vanilla", 2, micro_batch=2)
    check_equal(found, weights, of_one("vanilla"))


def test_a_killed_process_is_replaced_and_all_go_on(tmp_path: Path, of_one: Any) -> None:
    found, weights, _ = together(tmp_path, "token_choice", 2, kill_at=3)
    assert (tmp_path / "killed").exists()
    check_equal(found, weights, of_one("token_choice"))


def test_a_checkpoint_of_another_number_of_processes_goes_on_with_a_word(
    tmp_path: Path, of_one: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    together(tmp_path, "vanilla", 2)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["ranks"] == 2
    found, weights = trained("vanilla", tmp_path)
    assert "checkpoint.pt is of 2 processes, and 1 go on" in capsys.readouterr().err
    check_equal(json.loads(json.dumps(asdict(found))), weights, of_one("vanilla"))


def test_each_process_has_noise_of_its_own_and_the_first_that_of_one() -> None:
    def keys(number: int | None, loaded: bool = False) -> list[int]:
        model = build_model(SHAPE, build_router("mod", {"capacity": 0.25}), seed=1)
        if number is not None:
            group = RankGroup(number=number, count=2)
            group.spread(model)
            if loaded:
                of_one = build_model(SHAPE, build_router("mod", {"capacity": 0.25}), seed=1)
                optimizer = torch.optim.SGD(model.parameters())
                group.load(model, optimizer, of_one.state_dict(), optimizer.state_dict())
        return [int(part.key) for part in model.modules() if isinstance(part, Noise)]

    assert keys(None)
    assert keys(0) == keys(0, loaded=True) == keys(None)
    assert keys(1) == keys(1, loaded=True)
    assert not {*keys(1)} & {*keys(0)}
