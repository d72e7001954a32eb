"""Text from a trained run: what its model says after a prompt."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modbench.errors import UserError, known_names
from modbench.report.record import Record
from modbench.report.store import RECORDS, latest, read_records

if TYPE_CHECKING:
    from modbench.routing.build import RoutedDecoder


#: New tokens, at most.
MOST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How tokens are drawn, and how many; see `modbench.model.generate.generate`."""

    tokens: int = 100  #: how many to draw
    temperature: float = 0.0  #: 0: always the likeliest
    top_p: float = 1.0  #: keep the likeliest tokens that make up this much of the probability
    seed: int = 0
    cache: bool = True  #: keep keys and values; without, each token reads the whole text again

    def check(self) -> None:
        """
        Raises:
            UserError: a field is out of range, with the value and what would be right.
        """
        if not 1 <= self.tokens <= MOST:
            raise UserError(f"tokens is {self.tokens}; it must lie between 1 and {MOST:,}")
        from modbench.model.generate import check_sampling

        check_sampling(self.temperature, self.top_p, self.seed)


def find_record(run: str, results: Path) -> Record:
    """The record of ``SUITE/LABEL`` or ``SUITE/KEY`` (the first characters of a record's key).

    Raises:
        UserError: no such run, several, or one that failed.
    """
    suite, _, name = run.partition("/")
    records = latest(read_records(results / suite)) if (results / suite / "records").is_dir() else []
    if records and not name:
        rows = sorted({f"{suite}/{record.cell['router']['label']}" for record in records})
        raise UserError(f"run '{run}' is a suite; name one of its rows: {', '.join(rows)}")
    if not records:
        have = sorted(path.parent.name for path in results.glob("*/records"))
        raise UserError(
            f"run '{run}' must be SUITE/LABEL, such as quick/mod, with records in {results}; "
            f"{known_names(suite, have)}"
        )
    labelled = [record for record in records if record.cell["router"]["label"] == name]
    found = labelled or [record for record in records if record.key.startswith(name)]
    if not found:
        labels = {record.cell["router"]["label"] for record in records}
        raise UserError(f"run '{run}' is not known; {known_names(name, labels)}")
    trained = [record for record in found if record.status == "ok"]
    if not trained:
        status = found[0].status
        # What diverged or had no room would do so again, and is not run again.
        again = "run the suite again" if status == "failed" else "change the suite and run it"
        raise UserError(
            f"run '{run}' has no trained model, it is recorded as {status} ({found[0].error}); {again}, "
            "or name another run"
        )
    if len(trained) > 1:
        keys = ", ".join(f"{suite}/{record.key[:8]}" for record in trained)
        raise UserError(f"run '{run}' is one of {len(trained)} trained runs; name one of {keys}")
    return trained[0]


def _check_prompts(prompts: Sequence[str]) -> None:
    for prompt in prompts:
        if not prompt:
            raise UserError("a prompt is empty; give it a character or more")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"prompt {prompt!a} isn't valid UTF-8; give it as UTF-8 text") from error


def sample_run(
    run: str, prompts: Sequence[str], *, results: Path, plugins: Sequence[Path], drawing: Drawing
) -> list[str]:
    """What the model of ``run`` says after each of ``prompts``. How fast goes to stderr.

    Raises:
        UserError: no such run, or its weights or its router are gone, or its plugin's code is another by
            now; or a prompt that is no text.
    """
    drawing.check()
    _check_prompts(prompts)
    record = find_record(run, results)
    weights = results / run.partition("/")[0] / "cells" / record.key / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"run '{run}': its weights {weights} are not here; results keep them on the machine that "
            "trained: run the suite here, into another --results folder"
        )
    import torch

    from modbench.data.config import DataConfig
    from modbench.data.token_data import load
    from modbench.model.config import ModelConfig
    from modbench.model.generate import dense_cache_bytes, generate
    from modbench.model.kv_cache import Cache
    from modbench.routing.build import build_model
    from modbench.routing.registry import build_router

    cell = record.cell
    _load_plugin_of(cell["router"], plugins, run)
    model = build_model(
        ModelConfig(**cell["model"]),
        build_router(cell["router"]["name"], cell["router"]["options"]),
        cell["seed"],
    )
    _load_weights(model, weights, record, run, _again(results / run.partition("/")[0], record))
    tokenizer = load(DataConfig(**cell["data"])).tokenizer
    read = [tokenizer.encode(prompt) for prompt in prompts]
    trained, longest = cell["train"]["sequence"], max(map(len, read), default=0) + drawing.tokens
    if longest > trained:
        print(
            f"modbench: positions beyond {trained} were never trained, and a prompt of "
            f"{longest - drawing.tokens} with {drawing.tokens} new tokens goes to {longest}",
            file=sys.stderr,
        )
    kept: list[Cache] = []
    torch.set_num_threads(1)
    started = time.perf_counter()
    said = generate(
        model,
        read,
        new=drawing.tokens,
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        seed=drawing.seed,
        cached=drawing.cache,
        inspect=kept.append,
    )
    seconds = time.perf_counter() - started
    drawn = sum(map(len, said))
    how = "without a cache"
    if drawing.cache:
        dense = dense_cache_bytes(model, sum(kept[0].read))
        how = f"with a cache of {kept[0].bytes:,} bytes ({dense:,} in a dense model of its shape)"
    print(f"modbench: {drawn} tokens in {seconds:.2f} s {how}", file=sys.stderr)
    return [prompt + tokenizer.decode(tokens) for prompt, tokens in zip(prompts, said, strict=True)]


def _load_plugin_of(router: dict[str, Any], plugins: Sequence[Path], run: str) -> None:
    """Load the one of ``plugins`` that ``router`` is of, and the others no further than it takes to find
    it: they may change more than their own routers.

    Raises:
        UserError: it is none of theirs, or has changed since ``run`` was trained.
    """
    from modbench.routing.plugin_code import code_sha256
    from modbench.routing.registry import load_plugin, plugin_sha256

    name, digest = router["name"], router["plugin_sha256"]
    if digest is None:
        return

    def other(plugin: Path) -> bool:
        try:
            return code_sha256(plugin) != digest
        except OSError:  # loading it says what can't be read, if it comes to that
            return True

    for plugin in sorted(plugins, key=other):
        if name in load_plugin(plugin):
            break
    now = plugin_sha256(name)
    if now is None:
        raise UserError(
            f"run '{run}': its router '{name}' is of a plugin file (sha256 {digest[:12]}); give that "
            "file with --plugin"
        )
    if now != digest:
        raise UserError(
            f"run '{run}': the plugin file of its router '{name}', or its package, has changed "
            f"since the run was trained (sha256 {digest[:12]} then, {now[:12]} now); give --plugin the "
            "file as it was, or run the suite again"
        )


def _again(folder: Path, record: Record) -> str:
    """What to do for the suite in ``folder`` to train the run of ``record`` once more: what has a record
    is done."""
    shards = {path: path.read_text(encoding="utf-8") for path in (folder / RECORDS).glob("*.jsonl")}
    own = {path: text for path, text in shards.items() if record.key in text}
    if any(len(text.splitlines()) > 1 for text in own.values()):
        return "run the suite into another --results folder"
    return f"delete its record ({', '.join(map(str, sorted(own)))}) and run the suite again"


def _load_weights(model: "RoutedDecoder", weights: Path, record: Record, run: str, again: str) -> None:
    """
    Raises:
        UserError: they can't be read, are another record's or another router's, or broken; to train them
            once more, do as ``again`` says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from modbench.train.checkpoint import weights_owner

    name = model.router.name
    try:
        weights.open("rb").close()  # of a file that it may not read, safetensors says that there is none
    except OSError as error:
        raise UserError(
            f"run '{run}': its weights {weights} can't be read ({error.strerror}); mend its permissions"
        ) from error
    try:
        owner = weights_owner(weights)
        if owner and (owner["router"] != name or owner["key"] not in ("", record.key)):
            key = f", record {owner['key'][:8]}" if owner["key"] else ""
            raise UserError(
                f"run '{run}' is of router '{name}', record {record.key[:8]}, and {weights} are weights "
                f"of router '{owner['router']}'{key}; put them where they belong, or {again}"
            )
        model.load_state_dict(load_file(weights))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise UserError(
            f"run '{run}': {weights} are no weights of router '{name}' "
            f"({' '.join(str(error).split())[:200]}); {again}"
        ) from error
