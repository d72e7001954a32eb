"""Training to a budget, resumable to the bit."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modbench.data.batches import Batches
from modbench.ledger import Flops, Ledger, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.trace import Trace
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_names
from modbench.train import checkpoint, loop
from modbench.train.config import TrainConfig
from modbench.train.counted import flops_per_step
from modbench.train.loop import DivergedError, StoppedError, Trained, train_model
from modbench.train.optimizer import build_optimizer
from modbench.train.schedule import Schedule
from modbench.train.step import training_step

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
SCHEDULE = Schedule(budgets=(10**12,))
TRAIN = TrainConfig(sequence=32, batch=2, learning_rate=1e-2, evaluations=3)
#: A text with something to learn: each token tells the next.
TEXT_N = (np.arange(4000) * 7 % 97).astype(np.uint16)


def shape_of(name: str) -> ModelConfig:
    """Deeper for the scheme whose layers must be enough to share."""
    return replace(SHAPE, layers=4) if name == "mixture_of_recursions" else SHAPE


def run(
    name: str,
    folder: Path,
    *,
    steps: int | None = 12,
    stop_after: int | None = None,
    train: TrainConfig = TRAIN,
    schedule: Schedule = SCHEDULE,
    origin: str = "",
    text_N: np.ndarray = TEXT_N,
    heldout: float = 1.0,
    say: Callable[[dict[str, Any]], None] = lambda event: None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Decoder, Trained]:
    model = build_model(shape_of(name), build_router(name), seed=1)
    if steps is not None:
        schedule = replace(schedule, budgets=(steps * flops_per_step(model, train),))
    folder.mkdir(exist_ok=True)
    batches = Batches(text_N, sequence=32, batch=2, seed=1)
    asked = iter(range(10**6))
    trained = train_model(
        model,
        batches,
        train,
        schedule,
        dtype=torch.float32,
        evaluate=lambda model: heldout,
        folder=folder,
        say=say,
        origin=origin,
        stop=lambda: stop_after is not None and next(asked) >= stop_after,
        clock=clock,
    )
    return model, trained


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", router_names())
def test_resumed_equals_uninterrupted_to_the_bit(name: str, optimizer: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    train = replace(TRAIN, optimizer=optimizer)
    whole, spent = run(name, tmp_path / "whole", train=train)
    for cut in (3, 4):
        with pytest.raises(StoppedError):
            run(name, tmp_path / "parts", stop_after=cut, train=train)
    parts, spent_in_parts = run(name, tmp_path / "parts", train=train)
    assert spent == spent_in_parts
    ours, theirs = whole.state_dict(), parts.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_seconds_of_all_its_processes_are_kept(tmp_path: Path) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    for _ in range(2):
        with pytest.raises(StoppedError):
            run("vanilla", tmp_path, stop_after=3, clock=clock)
    ended = now
    said: list[dict[str, Any]] = []
    run("vanilla", tmp_path, clock=clock, say=said.append)
    assert ended > 2
    # The clock's first call in each process is its zero.
    assert said[0] == {"event": "resumed", "step": 6, "seconds": ended - 2}


@pytest.mark.parametrize("name", router_names())
def test_every_scheme_learns(name: str, tmp_path: Path) -> None:
    losses: list[float] = []
    model = build_model(shape_of(name), build_router(name), seed=1)
    train = replace(TRAIN, evaluations=60)
    train_model(
        model,
        Batches(TEXT_N, sequence=32, batch=2, seed=1),
        train,
        Schedule(budgets=(60 * flops_per_step(model, train),)),
        dtype=torch.float32,
        evaluate=lambda model: losses.append(0.0) or 0.0,
        folder=tmp_path,
        say=lambda event: None,
    )
    curve = checkpoint.load(tmp_path / "checkpoint.pt")["curve"]
    assert curve[0]["train_loss"] > 4.0
    assert curve[-1]["train_loss"] < 2.5
    assert len(losses) == len(curve)
    # One at each step, or nearly: where steps cost more than nominal ones, there are fewer of them.
    assert len(curve) > 20


@pytest.mark.parametrize("name", ["mode_integrated", "threshold_skip"])
def test_the_learning_curve_has_the_points_asked_for_where_the_cost_of_steps_moves(
    name: str, tmp_path: Path
) -> None:
    _, trained = run(name, tmp_path, steps=20, train=replace(TRAIN, evaluations=8))
    assert len(trained.curve) == 8
    assert trained.curve[-1]["step"] == trained.end.steps


def test_spent_flops_are_those_of_the_routing_that_took_place(tmp_path: Path) -> None:
    model, trained = run("mode_integrated", tmp_path, steps=5)
    assert trained.end.flops_nominal == trained.end.steps * flops_per_step(model, TRAIN)
    assert trained.end.flops != trained.end.flops_nominal
    most = model.ledger(
        Workload(
            lengths=(32, 32),
            phase="train",
            counts={(0, "experts"): (128,), (1, "experts"): (128,)},
        )
    ).total()
    assert trained.end.flops < trained.end.steps * most
    model, trained = run("mod", tmp_path / "..", steps=5)
    assert trained.end.flops == trained.end.flops_nominal


@pytest.mark.parametrize("broken", ["a weight is not finite", "the held-out loss is nan"])
def test_what_is_not_finite_after_the_last_step_is_divergence(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training loss of a step says nothing about the weights after it."""

    def step(model: Decoder, *arguments: object, **options: object) -> tuple[torch.Tensor, Context]:
        loss, context = training_step(model, *arguments, **options)
        losses.append(loss)
        if len(losses) == 4 and "weight" in broken:
            model.norm.weight.data[0] = torch.inf
        return loss, context

    losses: list[torch.Tensor] = []
    monkeypatch.setattr(loop, "training_step", step)
    heldout = math.nan if "held-out" in broken else 1.0
    train = replace(TRAIN, evaluations=1)
    with pytest.raises(DivergedError, match=f"{broken} after step 4"):
        run("vanilla", tmp_path, steps=4, train=train, heldout=heldout)
    assert all(loss.isfinite() for loss in losses)


def test_a_loss_that_is_nan_ends_the_run(tmp_path: Path) -> None:
    wild = TrainConfig(sequence=32, batch=2, learning_rate=1e30, clip=1e30, evaluations=1)
    with pytest.raises(DivergedError, match="training loss is"):
        run("vanilla", tmp_path, train=wild, schedule=replace(SCHEDULE, warmup=0.0), steps=20)


@pytest.mark.parametrize("times", [Fraction(1, 10), 10])
def test_the_budget_is_spent_and_no_more_whatever_the_nominal_flops(
    times: Fraction | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that understates FLOPs by ten would train for ten times the budget, one that overstates
    them by ten for a tenth of it."""
    right = Block.ledger

    def wrong(self: Block, load: Workload) -> Ledger:
        ledger = right(self, load)
        if load.counts:
            return ledger
        return Ledger({k: Flops(int(f.model * times), int(f.full * times)) for k, f in ledger})

    monkeypatch.setattr(Block, "ledger", wrong)
    model = build_model(SHAPE, build_router("token_choice"))
    counts = {(n, "experts"): (128,) for n in range(2)}
    true = model.ledger(Workload(lengths=(32, 32), phase="train", counts=counts)).total()
    budget = 12 * true
    train = TrainConfig(sequence=32, batch=2, evaluations=3)
    assert budget // flops_per_step(model, train) != 12
    schedule = Schedule(budgets=(budget,))
    _, trained = run("token_choice", tmp_path, steps=None, train=train, schedule=schedule)
    assert trained.end.steps == 12
    assert trained.end.flops == budget
    assert [point["step"] for point in trained.curve][-3:] == [4, 8, 12]


def test_the_gradient_is_clipped_before_the_optimizer_sees_it() -> None:
    train = TrainConfig(sequence=32, batch=2, clip=1e-3)
    model = build_model(SHAPE, build_router("vanilla"))
    norms: list[float] = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(torch.stack([g.norm() for g in gradients]).norm().item())

    batch = Batches(TEXT_N, sequence=32, batch=2, seed=1).step(0)
    training_step(model, Watching(model.parameters(), lr=0.1), train, batch, torch.float32)
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_matrices_decay_and_vectors_and_the_embedding_do_not() -> None:
    """By a step without any gradient, which moves what decays and nothing else."""
    model = build_model(SHAPE, build_router("token_choice"), seed=1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    build_optimizer(model, TRAIN).step()
    factor = 1 - TRAIN.learning_rate * TRAIN.weight_decay
    assert factor < 1
    for name, weight in model.named_parameters():
        decays = weight.dim() >= 2 and name != "embedding.weight"
        assert torch.allclose(weight, before[name] * (factor if decays else 1), rtol=1e-6), name


def test_a_steps_loss_is_the_cross_entropy_without_the_auxiliary_losses() -> None:
    model = build_model(SHAPE, build_router("token_choice"), seed=1)
    window_BT = torch.from_numpy(TEXT_N[:66].astype(np.int64)).view(2, 33)
    batch = window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()
    alike = build_model(SHAPE, build_router("token_choice"), seed=1)
    logits_BTV = alike(batch[0], context := Context(selection="topk"))
    expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch[1].flatten())
    assert context.trace.auxiliary_loss() > 1e-3
    loss, _ = training_step(model, build_optimizer(model, TRAIN), TRAIN, batch, torch.float32)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_checkpoint_of_other_text_is_not_gone_on_from(tmp_path: Path) -> None:
    whole, _ = run("vanilla", tmp_path / "a", origin="text two")
    with pytest.raises(StoppedError):
        run("vanilla", tmp_path / "b", origin="text one", stop_after=5)
    fresh, _ = run("vanilla", tmp_path / "b", origin="text two", text_N=TEXT_N)
    assert torch.equal(whole.embedding.weight, fresh.embedding.weight)
    with pytest.raises(StoppedError):
        run("vanilla", tmp_path / "c", origin="text one", stop_after=5, text_N=TEXT_N[::-1].copy())
    mixed, _ = run("vanilla", tmp_path / "c", origin="text two")
    assert torch.equal(whole.embedding.weight, mixed.embedding.weight)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The checkpoint of a run that was stopped after five of twelve steps."""
    with pytest.raises(StoppedError):
        run("vanilla", tmp_path / "stopped", stop_after=5)
    return tmp_path / "stopped" / "checkpoint.pt"


def starts_from_the_beginning(path: Path, capsys: pytest.CaptureFixture[str], why: str) -> None:
    """Training in the folder of the checkpoint ``path`` says ``why`` and equals an uninterrupted run."""
    whole, spent = run("vanilla", path.parent.parent / "whole")
    again, spent_again = run("vanilla", path.parent)
    said = capsys.readouterr().err
    assert said == f"checkpoint.pt is not used ({why}): training starts from the beginning\n"
    assert spent == spent_again
    assert torch.equal(whole.embedding.weight, again.embedding.weight)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_not_used(
    damage: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(stopped.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content.clear()
    else:
        places = {"flipped first": 0, "flipped": len(content) // 2, "flipped last": -1}
        content[places[damage]] ^= 1
    stopped.write_bytes(content)
    starts_from_the_beginning(stopped, capsys, "its content differs from its sha256")


def test_a_start_removes_the_temporary_files_of_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.half").write_bytes(b"half")
    run("vanilla", tmp_path, steps=1)
    assert not list(tmp_path.glob("*.half"))


def test_progress_is_said_as_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PROGRESS_SECONDS", 0)
    events: list[dict[str, Any]] = []
    _, trained = run(
        "vanilla", tmp_path, steps=4, train=replace(TRAIN, evaluations=2), say=events.append
    )
    points = [event for event in events if event["event"] == "point"]
    assert points == [{"event": "point", **point} for point in trained.curve]
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    last = steps[-1]
    assert math.isfinite(last.pop("loss"))
    flops = trained.end.flops
    assert last == {"event": "step", "phase": "train", "step": 4, "steps": 4} | {
        "flops": flops,
        "budget": flops,
        "tokens": 4 * 64,
    }


def test_large_checkpoints_take_a_twentieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saved = [0.0], [0]

    def save(path: Path, state: dict[str, Any]) -> None:
        now[0] += 10.0
        saved[0] += 1

    def step(*arguments: Any, **options: Any) -> Any:
        now[0] += 1.0
        return training_step(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(loop, "training_step", step)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    run("vanilla", tmp_path, steps=450, train=replace(TRAIN, checkpoint_seconds=2.0, evaluations=1))
    # The first one's cost is not known; each later one waits until it takes a twentieth.
    assert saved[0] == 1 + (450 - 2) // 200


def test_loss_and_counts_are_read_from_the_device_at_once() -> None:
    model = build_model(SHAPE, build_router("token_choice"), seed=1).train()
    tokens_BT = torch.arange(2 * 33).reshape(2, 33) % 97
    contexts = [Context(), Context()]
    losses = [model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], context) for context in contexts]
    traces = [context.trace for context in contexts]
    traces[1].count(9, "depth", (3, 2**40))
    value, counts = Trace.read(losses[0], traces)
    assert value == losses[0].item()
    assert counts == [trace.counts for trace in traces]
    assert counts[1][9, "depth"] == (3, 2**40)
