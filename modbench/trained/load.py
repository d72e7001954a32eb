"""Trained models: `load` returns model and tokenizer of a run or of a folder of weights."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modbench.data import token_data
from modbench.data.config import DataConfig
from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.records.record import CellRecord
from modbench.records.store import latest, read_suite
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router, load_plugin, plugin_sha256
from modbench.train.checkpoint import DamagedError, load_weights
from modbench.trained.find import find_record
from modbench.trained.weights_folder import DESCRIPTION, WEIGHTS, Description, read_description
from modbench.typed import built

Plugins = Sequence[str | Path]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A trained model and what is known of it."""

    model: RoutedDecoder  #: on the CPU, in eval mode
    tokenizer: Tokenizer
    label: str  #: SUITE/LABEL, as in tables
    key: str  #: key of its cell and its record
    sequence: int  #: tokens per sequence in training; later positions were never trained
    cell: dict[str, Any]  #: the resolved cell: router, model, data, train, measure, seed
    suite: str  #: name of its suite
    folder: Path  #: holds model.safetensors
    record: CellRecord | None  #: None for weights that were copied away from their results
    audit: Sequence[dict[str, Any]]  #: findings that were exported with the weights


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """Weights on disk, before they are loaded. ``name``: the run as the user wrote it."""

    name: str
    folder: Path
    suite: str
    cell: dict[str, Any]
    key: str
    description: Description | None
    record: CellRecord | None


def load(path: str | Path, plugins: Plugins = ()) -> tuple[RoutedDecoder, Tokenizer]:
    """Return the trained model, on the CPU in eval mode, and its tokenizer.

    ``path`` is a run, ``my-results/SUITE/LABEL`` or ``my-results/SUITE/KEY``, or a folder with
    ``model.safetensors``: that of a cell, ``my-results/SUITE/cells/KEY``, or a copy of it.
    ``plugins``: the Python files that register its router, if it is not built in. Logits (B, T, V)
    of token ids (B, T) are ``model(tokens_BT, Context(selection="causal"))``. Raises UserError: see
    `load_trained`."""
    loaded = load_trained(path, plugins)
    return loaded.model, loaded.tokenizer


def load_trained(
    path: str | Path, plugins: Plugins = (), *, results: str | Path | None = None
) -> Loaded:
    """Return the trained model at ``path`` and what is known of it; for the arguments see `load`. With a
    folder ``results``, ``path`` may also be SUITE/LABEL or SUITE/KEY. Raises UserError: no such run,
    several, or one that failed; its weights or its tokenizer are missing, damaged or of another run;
    its plugin is missing. If the code of its plugin has changed since, standard error says so."""
    folder = Path(path)
    if (folder / WEIGHTS).is_file():
        stored = _in_folder(folder)
    elif (folder / DESCRIPTION).is_file():
        raise UserError(f"folder {path} has no {WEIGHTS}; copy the whole folder of the weights")
    else:
        stored = _of_run(str(path), results)
    return _loaded(stored, [plugins] if isinstance(plugins, str | Path) else plugins)


def _of_run(run: str, results: str | Path | None) -> _Stored:
    suite, record = find_record(run, None if results is None else Path(results))
    folder = suite / "cells" / record.key
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"run '{run}': its weights {folder / WEIGHTS} are not here; they stay on the machine "
            f"that trained the run; to train it here: modbench run {suite.name} --results FOLDER"
        )
    description = read_description(folder)
    if description is not None and description.key != record.key:
        raise UserError(
            f"run '{run}': {folder / DESCRIPTION} is of another run; run the suite into another "
            "--results folder"
        )
    return _Stored(
        name=run,
        folder=folder,
        suite=record.suite["name"],
        cell=record.cell,
        key=record.key,
        description=description,
        record=record,
    )


def _in_folder(folder: Path) -> _Stored:
    """Describe the weights in ``folder`` from ``modbench.json``, or from the records of the
    results that it belongs to."""
    description, record = read_description(folder), None
    parents = folder.resolve().parents
    if parents[0].name == "cells" and len(parents) > 1:
        key = description.key if description else folder.resolve().name
        records = latest(read_suite(parents[1]).cells)
        record = next((one for one in records if one.key == key and one.status == "ok"), None)
    if description is not None:
        suite, cell, key = description.suite, description.cell, description.key
    elif record is not None:
        suite, cell, key = record.suite["name"], record.cell, record.key
    elif (folder / "config.json").exists():
        raise UserError(
            f"folder {folder} is in the format of Hugging Face transformers; load it with "
            "transformers.AutoModelForCausalLM.from_pretrained"
        )
    else:
        raise UserError(
            f"folder {folder} has {WEIGHTS} but no {DESCRIPTION}; copy that file too, or write the "
            "folder with `modbench export RUN --to modbench`"
        )
    return _Stored(
        name=str(folder),
        folder=folder,
        suite=suite,
        cell=cell,
        key=key,
        description=description,
        record=record,
    )


def _loaded(stored: _Stored, plugins: Plugins) -> Loaded:
    cell, description = stored.cell, stored.description
    model = _model(stored, plugins)
    if description is not None:
        tokenizer = description.tokenizer()
    else:
        tokenizer = token_data.load(DataConfig(**cell["data"])).tokenizer
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        label=f"{stored.suite}/{cell['router']['label']}",
        key=stored.key,
        sequence=cell["train"]["sequence"],
        cell=cell,
        suite=stored.suite,
        folder=stored.folder,
        record=stored.record,
        audit=description.audit if description is not None else (),
    )


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


def _model(stored: _Stored, plugins: Plugins) -> RoutedDecoder:
    cell, weights = stored.cell, stored.folder / WEIGHTS
    router, digest = cell["router"], cell["router"]["plugin_sha256"]
    for plugin in plugins if digest else ():
        load_plugin(plugin)
    _check_code(stored.name, router["name"], digest)
    model = build_model(
        built(f"run '{stored.name}': model", cell["model"], ModelConfig),
        build_router(router["name"], router["options"]),
        cell["seed"],
    )
    try:
        load_weights(weights, model, key=stored.key)
    except DamagedError as error:
        raise UserError(
            f"run '{stored.name}': its weights {weights} are damaged or of another run ({error}); copy "
            "them again, or run the suite into another --results folder"
        ) from error
    return model
