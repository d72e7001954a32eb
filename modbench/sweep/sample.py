"""`modbench sample`: generates text with the model of a trained run."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modbench.errors import UserError, known_names
from modbench.report.record import CellRecord
from modbench.report.store import latest, read_suite, recorded_suites

if TYPE_CHECKING:
    from modbench.routing.build import RoutedDecoder


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How many tokens are generated, and how; see `modbench.model.generate.generate`."""

    tokens: int = 100  #: new tokens per prompt
    temperature: float = 0.0  #: 0: always the most likely token
    seed: int = 0


def sample_run(
    run: str, prompts: Sequence[str], *, results: Path, plugins: Sequence[Path], drawing: Drawing
) -> list[str]:
    """Return each of ``prompts`` with the text that the model of ``run`` generates after it. Speed and
    cache size are printed on standard error. Raises UserError: there is no such run; its weights or its
    router are missing; its plugin's code has changed; a prompt is not text; or ``drawing`` has a field
    out of range."""
    from modbench.model.generate import check_sampling, dense_cache_bytes, generate

    if drawing.tokens < 1:
        raise UserError(f"tokens is {drawing.tokens}; it must be 1 or more")
    check_sampling(drawing.temperature, drawing.seed)
    for prompt in prompts:
        if not prompt or any("\ud800" <= char <= "\udfff" for char in prompt):
            raise UserError(f"prompt {prompt!a} is empty or not UTF-8; give a character or more of text")
    record = find_record(run, results)
    model = load_model(record, run, results / run.partition("/")[0], plugins)
    import torch

    from modbench.data.config import DataConfig
    from modbench.data.token_data import load
    from modbench.model.kv_cache import Cache
    from modbench.routing.plugin_fault import authors_code

    tokenizer = load(DataConfig(**record.cell["data"])).tokenizer
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    trained, longest = record.cell["train"]["sequence"], max(map(len, ids), default=0) + drawing.tokens
    if longest > trained:
        words = f"modbench: positions from {trained} to {longest} were never trained"
        print(words, file=sys.stderr)
    cache = Cache(len(ids))
    torch.set_num_threads(1)
    started = time.perf_counter()
    with authors_code(model.router, "generation"):
        new = generate(
            model,
            ids,
            new=drawing.tokens,
            temperature=drawing.temperature,
            seed=drawing.seed,
            cache=cache,
        )
    seconds, dense = time.perf_counter() - started, dense_cache_bytes(model, sum(cache.read))
    print(
        f"modbench: {sum(map(len, new))} tokens in {seconds:.2f} s with a cache of "
        f"{cache.bytes:,} bytes ({dense:,} in a dense model of its shape)",
        file=sys.stderr,
    )
    return [prompt + tokenizer.decode(tokens) for prompt, tokens in zip(prompts, new, strict=True)]


def find_record(run: str, results: Path) -> CellRecord:
    """Return the record of ``SUITE/LABEL`` or ``SUITE/KEY`` (the first characters of a record's key).
    Raises UserError: no such run, several, or one that failed."""
    suite, _, name = run.partition("/")
    records = latest(read_suite(results / suite).cells) if suite in recorded_suites(results) else []
    if not records:
        raise UserError(
            f"run '{run}' must be SUITE/LABEL, such as quick/mod, with records in {results}; "
            f"{known_names(suite, recorded_suites(results))}"
        )
    found = [record for record in records if record.cell["router"]["label"] == name]
    found = found or [record for record in records if name and record.key.startswith(name)]
    trained = [record for record in found if record.status == "ok"]
    if len(trained) == 1:
        return trained[0]
    if trained:
        keys = ", ".join(f"{suite}/{record.key[:8]}" for record in trained)
        raise UserError(f"run '{run}' is one of {len(trained)} trained runs; name one of {keys}")
    if found:
        status, error = found[0].status, found[0].error
        raise UserError(f"run '{run}' has no trained model, it is recorded as {status} ({error})")
    runs = {f"{suite}/{record.cell['router']['label']}" for record in records}
    raise UserError(f"run '{run}' is not known; {known_names(run, runs)}")


def load_model(record: CellRecord, run: str, folder: Path, plugins: Sequence[Path]) -> "RoutedDecoder":
    """The trained model of ``record``, from the suite's results ``folder``. Raises UserError: its
    weights are missing or damaged; none of ``plugins`` registers its router, or its code has changed
    since ``run`` was trained."""
    weights = folder / "cells" / record.key / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"run '{run}': its weights {weights} are not here; results keep them on the machine that "
            "trained: run the suite here, into another --results folder"
        )
    from modbench.model.config import ModelConfig
    from modbench.routing.build import build_model
    from modbench.routing.registry import build_router, load_plugin, plugin_sha256
    from modbench.train.checkpoint import DamagedError, load_weights

    router = record.cell["router"]
    digest = router["plugin_sha256"]
    for plugin in plugins if digest else ():
        load_plugin(plugin)
    if digest and plugin_sha256(router["name"]) != digest:
        raise UserError(
            f"run '{run}': its router '{router['name']}' is of a plugin file with sha256 {digest[:12]}; "
            "give that file with --plugin, as it was when the run was trained, or run the suite again"
        )
    model = build_model(
        ModelConfig(**record.cell["model"]),
        build_router(router["name"], router["options"]),
        record.cell["seed"],
    )
    try:
        load_weights(weights, model, key=record.key)
    except DamagedError as error:
        raise UserError(
            f"run '{run}': its weights {weights} are damaged or of another run ({error}); run the suite "
            "into another --results folder"
        ) from error
    return model
