"""`modbench convert`: a trained model of transformers becomes a routed one."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import tiny
from tokenizers import Tokenizer, models, pre_tokenizers

from modbench.cli.main import main
from modbench.counting.counter import FlopCounter
from modbench.data.batches import Batches
from modbench.hf.retrofit.build import routers_of
from modbench.model.config import ModelConfig
from modbench.routing.depth_router import DepthRouter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of names that transformers deprecates

TEXT = "the river runs past a green hill and the old mill turns its wheel in the cold water"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of words, and a text."""
    folder = tmp_path_factory.mktemp("given")
    ids = {word: number for number, word in enumerate(["<unk>", "</s>", *sorted(set(WORDS))])}
    engine = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=engine, eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / "llama")
    tiny("llama").save_pretrained(folder / "llama")
    generator = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(400):
        chosen = torch.randint(len(WORDS), (12,), generator=generator).tolist()
        lines.append(" ".join(WORDS[number] for number in chosen))
    (folder / "text.txt").write_text("\n".join(lines))
    return folder


def run(files: Path, out: Path, *words: str) -> int:
    given = ["--data", str(files / "text.txt"), "--out", str(out), "--batch", "2", "--sequence", "16"]
    return main(["convert", str(files / "llama"), *given, *words])


CASES: dict[str, tuple[list[str], float]] = {
    "mod": (["--router", "mod", "--option", "capacity=0.25"], 0.0),
    "routers-alone": (["--router", "mod", "--train", "router"], 0.0),
    "average": (["--router", "mod:ema_threshold"], 0.0),
    "threshold": (["--router", "threshold_skip"], 0.0),
    "experts": (["--router", "token_choice", "--option", "experts=4"], 1e-5),
}


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_is_loaded_with_its_receipt(
    case: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, difference = CASES[case]
    out = tmp_path / "out"
    assert run(files, out, "--budget", "6e7", *words) == 0
    assert capsys.readouterr().out == f"{out}\n"
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    described: dict[str, Any] = model.config.modbench
    assert described["receipt"]["largest_logit_difference"] <= difference
    conversion = described["conversion"]
    assert conversion["steps"] > 3
    assert 4e7 < conversion["flops"] <= 6e7
    assert conversion["heldout_loss"] > 0
    assert transformers.AutoTokenizer.from_pretrained(out)("the river").input_ids
    original = transformers.AutoModelForCausalLM.from_pretrained(files / "llama")
    same = torch.equal(original.lm_head.weight, model.lm_head.weight)
    assert same == (case == "routers-alone")
    if case == "mod":
        assert {part.options.capacity for part in routers_of(model)} == {0.25}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_cross_entropy_and_auxiliary_losses_are_printed_apart_with_the_share_of_tokens(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "out", ["--option", "capacity=0.25", "--option", "auxiliary=5"]
    assert run(files, out, "--budget", "6e7", *options) == 0
    told = capsys.readouterr().err
    steps = re.findall(r"cross-entropy ([\d.]+), auxiliary losses ([\d.]+), ([\d.]+)% of tokens", told)
    first, *_, last = [[*map(float, step)] for step in steps]
    conversion = json.loads((out / "config.json").read_text())["modbench"]["conversion"]
    assert first[0] == pytest.approx(conversion["heldout_loss_before"], abs=0.5)
    assert first[1] > 2
    assert first[2] == 100
    assert last[2] < 100
    assert 0 <= conversion["share_routed"] <= 1
    assert f"after, {conversion['share_routed']:.1%} of tokens routed; " in told


def test_the_validation_loss_has_no_balance_loss() -> None:
    from modbench.hf.retrofit.convert import _scored

    text = Batches(np.arange(200) % 97, batch=1, sequence=16, seed=0)
    losses = [
        _scored(tiny("mixtral", output_router_logits=True, router_aux_loss_coef=weight), text)
        for weight in (0.0, 10.0)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("router", ["mod", "threshold_skip", "expert_choice"])
def test_training_starts_from_the_model_as_it_was(router: str, files: Path) -> None:
    from modbench.hf.retrofit.convert import (
        Conversion,
        _capacities,
        _route,
        _set_capacities,
        start_from_original,
    )

    model = tiny("llama")
    ids_BT = torch.randint(2, 97, (2, 16))
    expected = model(ids_BT, labels=ids_BT).loss
    _route(model, Conversion(router=router, budget=1e9))
    targets = _capacities(model)
    start_from_original(model)
    _set_capacities(targets, 0.0)
    model.train()
    outputs = model(ids_BT, labels=ids_BT)
    loss = outputs.loss - model.routing.auxiliary_loss()
    torch.testing.assert_close(loss, expected, rtol=1e-2 if router == "threshold_skip" else 1e-5, atol=0)


@dataclass(frozen=True, kw_only=True)
class _PerLayer(DepthRouter):
    name = "per_layer"
    every: int = 1

    def capacity_of(self, model: ModelConfig, layer: int) -> float:
        return 1 / (2 + 2 * layer)


def test_each_layer_ends_at_its_own_capacity() -> None:
    from modbench.hf.retrofit.apply import retrofit
    from modbench.hf.retrofit.convert import _capacities, _set_capacities

    model = retrofit(tiny("llama"), _PerLayer())
    targets = _capacities(model)
    own = [part.options.capacity for part in routers_of(model)]
    assert own[:2] == [0.5, 0.25]
    for progress, first_two in ((0.0, [1.0, 1.0]), (0.5, [0.75, 0.625]), (1.0, [0.5, 0.25])):
        _set_capacities(targets, progress)
        assert [part.options.capacity for part in routers_of(model)][:2] == first_two


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--budget", "1e3"], "budget 1e+03 is below the"),
        (["--budget", "1e8", "--router", "mode_staged"], "puts a feed-forward part"),
        (["--budget", "1e8", "--data", "none.txt"], "none.txt"),
    ],
)
def test_a_conversion_that_fails_leaves_nothing(
    words: list[str], sentence: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, tmp_path / "out", *words) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert [*tmp_path.iterdir()] == []


def test_a_step_dearer_than_the_one_before_ends_the_training(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A threshold may select more tokens from step to step."""
    costs = iter([10_000, 10_000, 10_000, 10**8])
    monkeypatch.setattr(FlopCounter, "total_model", property(lambda self: next(costs)))
    out = tmp_path / "out"
    assert run(files, out, "--budget", "1e5", "--router", "threshold_skip") == 0
    conversion = json.loads((out / "config.json").read_text())["modbench"]["conversion"]
    assert (conversion["steps"], conversion["flops"]) == (3, 30_000)


def test_pickles_and_quantised_weights_are_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "llama"
    given.mkdir()
    config = json.loads((files / "llama" / "config.json").read_text())
    (given / "config.json").write_text(json.dumps(config))
    (given / "pytorch_model.bin").write_bytes(b"")
    assert run(tmp_path, tmp_path / "out", "--budget", "1e8") == 2
    assert "weights pytorch_model.bin are pickled" in capsys.readouterr().err
    (given / "model.safetensors").write_bytes(b"")
    (given / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    assert run(tmp_path, tmp_path / "out", "--budget", "1e8") == 2
    assert "has quantised weights" in capsys.readouterr().err
