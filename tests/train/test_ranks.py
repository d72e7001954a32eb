"""Several processes train as one does in as many micro-batches: losses, weights, FLOPs and counted
steps; on CPUs with gloo."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_training import SHAPE, trained

from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_class, router_names
from modbench.routing.tokens import Noise

SCRIPT = Path(__file__).with_name("rank_training.py")
#: A fixed capacity, data-dependent shapes, the random control, an average, a bias and an exponent that a
#: step moves, and a plugin with noise and unused parameters.
SOME = ("mod", "threshold_skip", "mod:gaussian", "expert_threshold", "token_choice:deepseek_v3")
SOME += ("relu_routing", "branching")
ALL = [
    f"{name}{of}"
    for name in router_names()
    for of in ("", *map(":{}".format, router_class(name).presets))
]
SLOW = pytest.mark.slow


def together(folder: Path, schemes: Sequence[str], processes: int, **more: Any) -> str:
    """Train ``schemes`` by torchrun, each in its folder of ``folder``; return the output."""
    folder.mkdir(exist_ok=True)
    wanted = {"schemes": schemes, "parallel": {"data": processes}, **more}
    (folder / "wanted.json").write_text(json.dumps(wanted))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"]
    command += ["--log-dir", str(folder / "logs")]
    command += [f"--nproc-per-node={processes}", str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if (folder / schemes[0] / "killed").exists():
        assert done.returncode != 0
        assert not (folder / schemes[0] / "found.json").exists()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def check_equal(folder: Path, scheme: str, alone: Path, *, rounds: bool = False, **train: Any) -> None:
    """Check that the processes have left in ``folder`` the result of one process, which this trains in
    ``alone`` with the settings ``train``."""
    alone.mkdir(parents=True)
    of_one, of_one_weights = trained(scheme, alone, **train)
    found = json.loads((folder / scheme / "found.json").read_text())
    expected = json.loads(json.dumps(asdict(of_one)))
    assert found["end"] == expected["end"]
    assert found["counted_steps"] == expected["counted_steps"] >= 2
    assert not found["miscounted"]
    assert not found["recharged"]
    for ours, theirs in zip(found["curve"], expected["curve"], strict=True):
        for name in ("train_loss", "heldout_loss"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), (scheme, ours["step"], name)
    weights = torch.load(folder / scheme / "weights.pt")
    assert weights.keys() == of_one_weights.keys()
    for name, weight in of_one_weights.items():
        # Of several sums. Adam's steps are as large for a gradient that is rounding alone.
        assert rounds or torch.allclose(weights[name], weight, atol=1e-4), (scheme, name)


@pytest.mark.parametrize(
    ("schemes", "processes", "micro_batch", "steps"),
    [
        (("branching", "relu_routing", "mod:ema_threshold"), 2, 4, 5),
        pytest.param(SOME, 2, 2, 8, marks=SLOW),
        pytest.param(ALL, 2, 4, 50, marks=pytest.mark.full),
        pytest.param(ALL, 4, 2, 50, marks=pytest.mark.full),
    ],
)
def test_processes_train_as_one_does_in_as_many_passes(
    schemes: Sequence[str], processes: int, micro_batch: int, steps: int, tmp_path: Path
) -> None:
    # With more than two addends their order rounds, which can change a choice of experts in float32.
    train = {"micro_batch": micro_batch, "steps": steps, "double": micro_batch < 4}
    together(tmp_path, schemes, processes, **train)
    for scheme in schemes:
        check_equal(tmp_path, scheme, tmp_path / "alone" / scheme, rounds=micro_batch < 4, **train)


def test_processes_train_by_muon_as_one_does(tmp_path: Path) -> None:
    together(tmp_path, ["mod", "token_choice"], 2, optimizer="muon")
    for scheme in ("mod", "token_choice"):
        alone = tmp_path / "alone" / scheme
        check_equal(tmp_path, scheme, alone, micro_batch=4, optimizer="muon")


@SLOW
def test_processes_compile_their_steps(tmp_path: Path) -> None:
    together(tmp_path, ["mod"], 2, compile="on", steps=3)
    check_equal(tmp_path, "mod", tmp_path / "alone", micro_batch=4, steps=3)


def test_a_killed_process_is_replaced_and_all_go_on(tmp_path: Path) -> None:
    together(tmp_path, ["token_choice"], 2, kill_at=3)
    assert (tmp_path / "token_choice" / "killed").exists()
    check_equal(tmp_path, "token_choice", tmp_path / "alone", micro_batch=4)


def test_a_checkpoint_of_another_number_of_processes_goes_on_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    together(tmp_path, ["vanilla"], 2)
    state = torch.load(tmp_path / "vanilla" / "checkpoint.pt", weights_only=True)
    assert state["ranks"] == 2
    trained("vanilla", tmp_path / "vanilla")
    assert "checkpoint.pt is of 2 processes, and 1 go on" in capsys.readouterr().err
    check_equal(tmp_path, "vanilla", tmp_path / "alone")


def test_the_rows_of_a_batch_have_noise_of_their_own_and_the_first_that_of_one_pass() -> None:
    model = build_model(SHAPE, build_router("mod"), seed=1)
    (noise,) = [part for part in model.modules() if isinstance(part, Noise)]

    def seed(first_row: int | None) -> int:
        row = None if first_row is None else torch.tensor(first_row)
        return noise.eval().generator(Context(first_row=row)).initial_seed()

    assert seed(None) == seed(0)
    assert len({seed(0), seed(4), seed(8)}) == 3
