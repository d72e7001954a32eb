"""Trained models: `load` returns model and tokenizer of a run or of a folder of weights."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modbench.data import token_data
from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError, known_names
from modbench.hf.models import model_of
from modbench.model.language_model import LanguageModel
from modbench.model.shape import HubConfig
from modbench.records.named import folder_of, run_name
from modbench.records.probes import leak_verdict
from modbench.records.record import Finding
from modbench.records.result import Result, results_of
from modbench.records.run import Run
from modbench.records.run_name import RunName, shortest
from modbench.records.store import read_audit, read_suite
from modbench.routing.registry import load_plugin, plugin_sha256
from modbench.train.checkpoint import DamagedError, load_weights
from modbench.trained.weights_folder import (
    DESCRIPTION,
    WEIGHTS,
    Description,
    read_description,
)

Plugins = Sequence[str | Path]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A trained model and what is known of it."""

    model: LanguageModel  #: on the CPU, in eval mode
    tokenizer: Tokenizer
    run: Run  #: what fixed its weights
    suite: str  #: name of its suite
    row: str  #: label of its row
    folder: Path  #: holds model.safetensors
    weights: Path  #: the file
    result: Result | None  #: None for weights that were copied away from their results
    audit: Sequence[Finding]  #: findings that were exported with the weights

    @property
    def label(self) -> str:
        """SUITE/LABEL, as in tables."""
        return f"{self.suite}/{self.row}"

    @property
    def key(self) -> str:
        return self.run.key

    @property
    def sequence(self) -> int:
        """Tokens per sequence in training; later positions were never trained."""
        return self.run.train.sequence


def load(path: str | Path, plugins: Plugins = ()) -> tuple[LanguageModel, Tokenizer]:
    """Return the trained model, on the CPU in eval mode, and its tokenizer.

    ``path`` is a run, ``my-results/SUITE/LABEL@BUDGET#SEED`` (the last parts may be left out if one run
    remains; without the seed, the first is taken) or ``my-results/SUITE/KEY``, or a folder with
    ``model.safetensors``: that of a run, ``my-results/SUITE/runs/KEY``, or a copy of it.
    ``plugins``: the Python files that register its router, if it is not built in. Logits (B, T, V)
    of token ids (B, T) are ``model(tokens_BT, Context(selection="causal"))``. Raises UserError: see
    `load_trained`."""
    loaded = load_trained(path, plugins)
    return loaded.model, loaded.tokenizer


def load_trained(
    path: str | Path, plugins: Plugins = (), *, results: str | Path | None = None
) -> Loaded:
    """Return the trained model at ``path`` and what is known of it; for the arguments see `load`. With a
    folder ``results``, ``path`` may also start with SUITE. Raises UserError: no such run, several, or
    one that failed; its weights or its tokenizer are missing, damaged or of another run; its plugin is
    missing. If the code of its plugin has changed since, standard error says so."""
    folder = Path(path)
    if (folder / WEIGHTS).is_file():
        description, result = _in_folder(folder)
    elif (folder / DESCRIPTION).is_file():
        raise UserError(f"folder {path} has no {WEIGHTS}; copy the whole folder of the weights")
    else:
        folder, description, result = _of_run(str(path), results)
    known = description or result
    assert known is not None
    run = known.run
    model = _model(str(path), run, folder, [plugins] if isinstance(plugins, str | Path) else plugins)
    if description is not None:
        tokenizer = description.tokenizer
    elif run.data.source != "pypi-en-v1" or run.data.has_tokenizer_file:
        raise UserError(
            f"run '{path}': its folder has no {DESCRIPTION}, which holds its tokenizer; copy that file "
            "there"
        )
    else:
        tokenizer = token_data.load(run.data).tokenizer
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        run=run,
        # Those of the results count, where a label may have changed.
        suite=str(known.suite) if result is None else str(result.suite["name"]),
        row=known.label if result is None else result.label,
        folder=folder,
        weights=folder / WEIGHTS,
        result=result,
        audit=description.audit if description is not None else (),
    )


def _of_run(run: str, results: str | Path | None) -> tuple[Path, Description | None, Result]:
    suite, result = find_result(run, None if results is None else Path(results))
    folder = suite / "runs" / result.key
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"run '{run}': its weights {weights} are not here; they stay on the machine "
            f"that trained the run; to train it here: modbench run {suite.name} --results FOLDER"
        )
    description = read_description(folder)
    if description is not None and description.run.key != result.key:
        raise UserError(
            f"run '{run}': {folder / DESCRIPTION} is of another run; run the suite into another "
            "--results folder"
        )
    return folder, description, result


def _in_folder(folder: Path) -> tuple[Description | None, Result | None]:
    """Describe the weights in ``folder`` from ``modbench.json``, or from the records of the
    results that it belongs to."""
    description = read_description(folder)
    result = None
    parents = folder.resolve().parents
    if parents[0].name == "runs" and len(parents) > 1:
        key = description.run.key if description else folder.resolve().name
        results = [candidate for candidate in results_of(read_suite(parents[1])) if candidate.key == key]
        result = next((candidate for candidate in reversed(results) if candidate.status == "ok"), None)
    if description is None and result is None:
        if (folder / "config.json").exists():
            raise UserError(
                f"folder {folder} is in the format of Hugging Face transformers; load it with "
                "transformers.AutoModelForCausalLM.from_pretrained"
            )
        raise UserError(
            f"folder {folder} has {WEIGHTS} but no {DESCRIPTION}; copy that file too, or write the "
            "folder with `modbench export RUN --to modbench`"
        )
    return description, result


def _check_code(run: str, router: str, trained: str | None) -> None:
    """Say on standard error that the weights were ``trained`` with code of ``router`` of another hash;
    None: not recorded. Raise a `UserError` if its plugin is not loaded."""
    loaded = plugin_sha256(router)
    if trained and loaded is None:
        raise UserError(
            f"run '{run}': its router '{router}' is of a plugin with sha256 {trained[:12]}; give its "
            "file with --plugin (in Python: plugins=[FILE]) or install its package"
        )
    if loaded and loaded != trained:
        known = f"has sha256 {trained[:12]}" if trained else "is not recorded"
        print(
            f"modbench: run '{run}' was trained with other code of router '{router}': that {known}, "
            f"what is loaded now has {loaded[:12]}; results may differ from its record",
            file=sys.stderr,
        )


def _model(name: str, run: Run, folder: Path, plugins: Plugins) -> LanguageModel:
    for plugin in plugins if run.router.plugin_sha256 else ():
        load_plugin(plugin)
    _check_code(name, run.router.name, run.router.plugin_sha256)
    # Weights of a folder that training began with are not needed: the stored ones replace them.
    shape = run.model.random if isinstance(run.model, HubConfig) else run.model
    model = model_of(shape, run.router.name, run.router.options, run.seed)
    try:
        load_weights(folder / WEIGHTS, model, key=run.key)
    except DamagedError as error:
        raise UserError(
            f"run '{name}': its weights {folder / WEIGHTS} are damaged or of another run "
            f"({error}); copy them again, or run the suite into another --results folder"
        ) from error
    return model


def find_result(run: str | Path, results: Path | None = None) -> tuple[Path, Result]:
    """Return the suite's folder and the result of ``run``: the path RESULTS/SUITE/NAME, or SUITE/NAME in
    the folder ``results``. A NAME is that of `modbench.records.run_name`, or has the first characters of
    a key in place of its label; parts that tell nothing apart may be left out. Of runs that differ in
    their seed only, the first is taken, and standard error says so. Raises UserError: no such run,
    several, or one that failed."""
    try:
        suite, name = folder_of(run, results or Path())
    except UserError as unknown:
        raise UserError(f"run '{run}' is no folder with {WEIGHTS}, and {unknown}") from None
    known = results_of(read_suite(suite))
    before = str(Path(run)).removesuffix(name) if name else f"{Path(run)}/"
    named = _named(name, known)
    trained = [result for result in named if result.status == "ok"]
    if len({(result.key, result.budget) for result in trained}) == 1:
        return suite, trained[-1]
    first = [result for result in trained if result.seed == min(of.seed for of in trained)]
    if len(first) == 1 and {result.label for result in trained} == {RunName.parsed(name).row}:
        words = f"seed {first[0].seed} is taken, the first of {len(trained)}"
        another = f"{before}{_names_of(trained[-1:], known)[0]}"
        print(f"modbench: run '{run}': {words}; another is {another}", file=sys.stderr)
        return suite, first[0]
    if trained:
        names = ", ".join(before + shown for shown in _names_of(trained, known))
        raise UserError(f"run '{run}' is one of {len(trained)} trained runs; name one of {names}")
    if named:
        status, error = named[0].status, named[0].error
        raise UserError(f"run '{run}' has no trained model, it is recorded as {status} ({error})")
    of_row = [result for result in known if result.label == RunName.parsed(name).row]
    others = _names_of(of_row, known) or {result.label for result in known}
    raise UserError(f"run '{run}' is not known; {known_names(run, [before + row for row in others])}")


def _named(name: str, known: Sequence[Result]) -> list[Result]:
    """The results of ``known`` that ``name`` may mean."""
    if labelled := [result for result in known if result.label == name]:
        return labelled
    parts = RunName.parsed(name)
    fitting = [result for result in known if name and parts.names(run_name(result))]
    labelled = [result for result in fitting if result.label == parts.row]
    return labelled or [result for result in fitting if result.key.startswith(parts.row)]


def _names_of(results: Sequence[Result], known: Sequence[Result]) -> list[str]:
    """The names of ``results``, which tell them apart from all of ``known``."""
    names = shortest([run_name(result) for result in known], [result.key for result in known])
    return [name for name, result in zip(names, known, strict=True) if result in results]


def findings_of(loaded: Loaded) -> list[Finding]:
    """Return the audit's findings on the scheme and on the trained weights, from the results or as they
    were exported; none for weights that were copied away without them."""
    result = loaded.result
    if result is None:
        return list(loaded.audit)
    audit = read_audit(loaded.folder.resolve().parents[1], result.audit_key or "")
    return [*(audit.audit if audit else ()), *result.audit]


def leak_of(loaded: Loaded) -> str:
    """Return the verdict of `leak_verdict`; ``not audited`` for weights without findings."""
    return leak_verdict(findings_of(loaded))
