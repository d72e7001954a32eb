"""Models of runs and of folders of weights, and weights that can't be used."""

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from small_suite import modbench_says, write_suite
from trained_runs import RUNS, add_records, model_of, record_of, save_trained, weights_at

import modbench
from modbench.data import token_data
from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError
from modbench.model.context import Context
from modbench.routing.registry import load_plugin, router_names
from modbench.train.checkpoint import save_weights
from modbench.trained.load import find_result, load_trained

HE = [(104, 101)]  # one merge: "h" and "e"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results whose corpus is prepared."""
    results = tmp_path / "my-results"
    add_records(results, *(record_of(*run) for run in RUNS))
    prepared = type("Text", (), {"tokenizer": Tokenizer(HE)})
    monkeypatch.setattr(token_data, "load", lambda config: prepared)
    return results


def without_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(config: object) -> None:
        raise AssertionError("the corpus was read")

    monkeypatch.setattr(token_data, "load", missing)


def logits_of(model: Any) -> torch.Tensor:
    return model(torch.arange(20).view(2, 10), Context(selection="causal"))


@pytest.mark.parametrize("described", [False, True], ids=["older-results", "described"])
def test_a_run_is_a_model_in_eval_mode_and_its_tokenizer(results: Path, described: bool) -> None:
    folder = save_trained(results, "tiny/mod", HE if described else None)
    for path in (results / "tiny" / "mod", f"{results}/tiny/{folder.name[:6]}", folder):
        model, tokenizer = modbench.load(path)
        assert not model.training
        assert torch.equal(logits_of(model), logits_of(model_of("mod")))
        assert tokenizer.encode("he said") == Tokenizer(HE).encode("he said")


@pytest.mark.parametrize("described", [False, True], ids=["older-results", "described"])
def test_a_loaded_run_has_its_record_label_and_length(results: Path, described: bool) -> None:
    folder = save_trained(results, "tiny/mod", HE if described else None)
    _, known = find_result("tiny/mod", results)
    for loaded in (load_trained("tiny/mod", results=results), load_trained(folder)):
        assert loaded.result is not None
        assert loaded.result.record == known.record
        assert (loaded.label, loaded.row, loaded.suite) == ("tiny/mod", "mod", "tiny")
        assert (loaded.run, loaded.key, loaded.sequence) == (known.run, known.key, 10)
        assert loaded.weights == folder / "model.safetensors"


def test_a_renamed_row_names_its_weights(results: Path) -> None:
    folder = save_trained(results, "tiny/mod", HE)
    add_records(results, record_of("renamed", "mod", 0))
    for loaded in (load_trained("tiny/renamed", results=results), load_trained(folder)):
        assert loaded.label == "tiny/renamed"


def test_a_copied_folder_loads_without_results_and_corpus(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(save_trained(results, "tiny/mod", HE), tmp_path / "copied")
    shutil.rmtree(results)
    without_corpus(monkeypatch)
    loaded = load_trained(copied)
    assert torch.equal(logits_of(loaded.model), logits_of(model_of("mod")))
    assert loaded.tokenizer.merges == tuple(HE)
    assert (loaded.label, loaded.sequence, loaded.result) == ("tiny/mod", 10, None)


def test_a_trained_suite_leaves_folders_that_load_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {"tokenizer": "bpe", "vocabulary": 260}
    write_suite(tmp_path, "small", "mod", model={"layers": 2}, data=tokens)
    code, said = modbench_says(tmp_path, "run", "suite.toml")
    assert code == 0, said
    (folder,) = (tmp_path / "my-results" / "small" / "runs").iterdir()
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    run = load_trained("my-results/small/mod")
    prepared = token_data.load(run.run.data).tokenizer
    copied = shutil.copytree(folder, tmp_path / "copied")
    shutil.rmtree(tmp_path / "cache")
    for loaded in (run, load_trained(copied)):
        assert loaded.tokenizer.merges == prepared.merges
        assert loaded.tokenizer.vocabulary == 260
    assert torch.equal(logits_of(run.model), logits_of(loaded.model))
    text = run.tokenizer.decode(run.tokenizer.encode("one line"))
    assert text == "one line"


def test_weights_that_are_gone_or_broken_are_told(results: Path) -> None:
    run = results / "tiny" / "mod"
    with pytest.raises(UserError, match="are not here; they stay on the machine that trained the run"):
        modbench.load(run)
    path = save_trained(results, "tiny/mod") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"damaged or of another run"):
        modbench.load(run)


def test_damaged_weights_and_those_of_another_run_are_refused(results: Path) -> None:
    run = results / "tiny" / "mod"
    path = weights_at(results, find_result(run)[1])
    for router, key in (("vanilla", path.parent.name), ("mod", "another")):
        save_weights(path, model_of(router), key=key)
        with pytest.raises(UserError, match=r"damaged or of another run \(it is of another run\)"):
            modbench.load(run)
    save_weights(path, model_of("mod"), key=path.parent.name)
    content = bytearray(path.read_bytes())
    for changed in (-1, 20):  # of a tensor, of the header
        content[changed] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights \S+ are damaged or of another run \("):
            modbench.load(run)
        content[changed] ^= 1
    path.write_bytes(content)
    modbench.load(run)


def changed(folder: Path, text: str, by: str) -> None:
    path = folder / "modbench.json"
    content = path.read_text()
    assert text in content
    path.write_text(content.replace(text, by))


def test_a_changed_description_is_refused(results: Path, tmp_path: Path) -> None:
    folder = save_trained(results, "tiny/mod", HE)
    for number, (text, by) in enumerate(
        [("[104,101]", "[104,102]"), ('"format":2', '"format":3'), ("{", ""), ("104", "x")]
    ):
        copied = shutil.copytree(folder, tmp_path / str(number))
        changed(copied, text, by)
        with pytest.raises(UserError, match=r"modbench\.json is damaged"):
            modbench.load(copied)


def test_a_description_of_another_run_is_refused(results: Path) -> None:
    folder, other = save_trained(results, "tiny/mod", HE), save_trained(results, "tiny/vanilla", HE)
    shutil.copy(other / "modbench.json", folder)
    with pytest.raises(UserError, match=r"modbench\.json is of another run"):
        modbench.load(results / "tiny" / "mod")
    with pytest.raises(UserError, match="damaged or of another run"):
        modbench.load(folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["model.safetensors"], "has model.safetensors but no modbench.json; copy that file too"),
        (["modbench.json"], "has no model.safetensors; copy the whole folder"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(files: list[str], words: str, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "suite" / "folder"  # not next to the folders of other tests
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(UserError, match=words):
        modbench.load(folder)


def plugin_at(file: Path) -> Path:
    """A plugin whose router has the file's name."""
    file.write_text(
        "from modbench.routing.registry import register_router\n"
        "from modbench.routers.vanilla import Vanilla\n"
        "from dataclasses import dataclass\n"
        f"@register_router('{file.stem}')\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Vanilla): ...\n"
    )
    return file


def record_with(results: Path, name: str, digest: str | None) -> None:
    """Add a record of router ``name``, and weights of the dense model."""
    record = record_of("mine", name, 0, options={}, plugin_sha256=digest)
    add_records(results, record)
    save_weights(weights_at(results, record), model_of("vanilla"), key=record.key)


def test_plugins_are_loaded_for_a_router_of_a_plugin_alone(results: Path) -> None:
    files = [plugin_at(results.parent / f"loaded_{name}.py") for name in ("first", "second")]
    record_with(results, "vanilla", None)
    modbench.load(results / "tiny" / "mine", files)
    assert not {file.stem for file in files} & set(router_names())


@pytest.mark.parametrize("as_list", [True, False])
def test_a_model_of_a_plugin_loads_with_its_file(results: Path, as_list: bool) -> None:
    file = plugin_at(results.parent / f"loaded_{as_list}.py".lower())
    record_with(results, file.stem, sha256(file.read_bytes()).hexdigest())
    with pytest.raises(UserError, match=f"its router '{file.stem}' is of a plugin with"):
        modbench.load(results / "tiny" / "mine")
    plugins = [file] if as_list else str(file)
    with pytest.raises(UserError, match="damaged or of another run"):  # weights of the dense model
        modbench.load(results / "tiny" / "mine", plugins)
    folder = save_trained(results, "tiny/mine", HE)
    for path in (results / "tiny" / "mine", folder):
        model, _ = modbench.load(path, plugins)
        assert model.router.name == file.stem
        assert torch.equal(logits_of(model), logits_of(model_of("vanilla")))


@pytest.mark.parametrize("name", ["loaded_nowhere", "vanilla"], ids=["unknown", "built-in"])
def test_a_run_whose_plugin_is_not_given_is_refused(name: str, results: Path) -> None:
    record_with(results, name, "ab" + 62 * "0")
    words = rf"its router '{name}' is of a plugin with sha256 ab{10 * '0'}; give its file"
    with pytest.raises(UserError, match=words):
        modbench.load(results / "tiny" / "mine")


@pytest.mark.parametrize("edited", [False, True])
def test_a_run_that_was_trained_with_other_code_of_its_plugin_says_so(
    results: Path, edited: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plugin_at(results.parent / f"loaded_edited_{edited}.py".lower())
    load_plugin(file)
    digest = sha256(file.read_bytes()).hexdigest()
    record_with(results, file.stem, "ab" + 62 * "0" if edited else digest)
    folder = save_trained(results, "tiny/mine", HE)
    model, _ = modbench.load(folder, file)
    assert model.router.name == file.stem
    said = (
        f"modbench: run '{folder}' was trained with other code of router '{file.stem}': that has sha256 "
        f"ab{10 * '0'}, what is loaded now has {digest[:12]}; results may differ from its record\n"
    )
    assert capsys.readouterr().err == (said if edited else "")
