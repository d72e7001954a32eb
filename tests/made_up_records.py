"""Records with plainly made-up figures; no test here measures anything."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isoflop_made_up import PLAN, Make

from modbench.records.record import AnyRecord, CellRecord, cell_key

FLOPS_PER_TOKEN = 3_000_000


def make_record(
    label: str = "vanilla",
    *,
    router: str | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    loss: float = 5.0,
    cost: float = 1.0,
    status: str = "ok",
    failed_probes: tuple[int, ...] = (),
    metrics: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    measure: dict[str, Any] | None = None,
    finished: str = "2026-01-01T00:10:00+00:00",
    **fields: Any,
) -> CellRecord:
    """A record of ``label``; ``cost`` scales its FLOPs and times against a dense model's 1."""
    cell = {
        "router": {
            "name": router or label.partition("/")[0],
            "options": options or {},
            "plugin_sha256": None,
            "label": label,
        },
        "model": {"vocabulary": 2048, "width": 128, "layers": 4, **(model or {})},
        "data": {"source": "pypi-en-v1", "tokenizer": "bpe"},
        "train": {"budget": 1_000_000_000_000, "sequence": 256, "batch": 8, **(train or {})},
        "measure": {"heldout_tokens": 65_536, "downstream": ("modbench_cloze",), **(measure or {})},
        "seed": seed,
    }
    names = {1: "causal", 2: "batch", 3: "parity", 5: "bypass", 9: "count"}
    flops = round(FLOPS_PER_TOKEN * cost)
    steps = 10**12 // (3 * flops * 2048)
    measured = {
        "heldout_loss": loss,
        "heldout_bits_per_byte": loss / 2.5,
        "heldout_loss_leaky": loss - 0.02,
        "leak": 0.02,
        "unigram_loss": 6.25,
        "train_steps": steps,
        "train_tokens": steps * 2048,
        "train_flops_nominal": steps * 3 * flops * 2048,
        "train_flops": steps * 3 * flops * 2048,
        "train_flops_per_token": 3 * flops,
        "forward_flops_per_token": flops,
        "forward_flops_per_token_full": flops + 100_000,
        "forward_flops_per_token_realised": flops * 1.01,
        "forward_flops_per_token_dispatched": flops * 1.02,
        "kv_cache_bytes_per_token": 2250.4,
        "kv_cache_share": 0.5624,
        "parameters": 1_200_000,
        "active_parameters": 1_000_000,
        "forward_seconds": {"median": 0.03 * cost, "iqr": 0.001, "n": 12, "stable": True},
        "train_step_seconds": {"median": 0.1 * cost, "iqr": 0.006, "n": 12, "stable": True},
        "peak_memory_bytes": {
            "median": 80_000_000 * cost,
            "iqr": None,
            "n": 1,
            "stable": None,
        },
        "modbench_cloze": 0.4,
        "modbench_cloze_untrained": 0.26,
        "modbench_cloze_chance": 0.25,
    }
    curve = [
        {
            "step": step,
            "flops": step * 3 * flops * 2048,
            "tokens": step * 2048,
            "train_loss": loss + 8 / (step + 4),
            "heldout_loss": loss + 9 / (step + 4),
        }
        for step in range(0, steps + 1, max(steps // 8, 1))
    ]
    arguments: dict[str, Any] = {
        "suite": {"name": "fake", "version": 1, "rank_by": "heldout_loss"},
        "cell": cell,
        "key": cell_key(cell),
        "code": {"version": "0.1.0", "commit": "0" * 40, "dirty": False},
        "environment": {
            "cpu": "Imaginary CPU",
            "gpu": None,
            "cores": 2,
            "threads": 2,
            "torch": "2.13.0",
            **(environment or {}),
        },
        "data": {
            "sha256": "ab" * 32,
            "train_tokens": 4_000_000,
            "heldout_tokens": 200_000,
            **(data or {}),
        },
        "audit": [
            {
                "probe": number,
                "name": name,
                "verdict": "failed" if number in failed_probes else "passed",
                "figure": "moved by 0.7" if number in failed_probes else "0",
                "ranks": number != 5,
            }
            for number, name in names.items()
        ],
        "metrics": {**(measured if status == "ok" else {}), **(metrics or {})},
        "curve": curve if status == "ok" else [],
        "routing": {},
        "status": status,
        "error": None if status == "ok" else "the loss is not finite at step 7",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": finished,
    }
    return CellRecord(**{**arguments, **fields})


def make_routing(
    layers: tuple[int, ...] = (1, 3),
    experts: tuple[int, ...] = (),
    *,
    routed: tuple[int, ...] | None = None,
    first: int = -2,
    exponent: int = 0,
    load: tuple[int, ...] = (10, 40, 30, 20),
) -> dict[str, Any]:
    """Ten windows of ten tokens, of four kinds that come 50, 20, 16 and 4 times; ``routed``: how often
    each enters, all layers counted."""
    if routed is None:
        routed = tuple(times * len(layers) for times in (45, 3, 0, 2))
    weights = {"exponent": exponent, "first": first, "all": [30, 50, 20], "selected": [0, 2, 8]}
    depth = [{"layer": layer, "routed": [4, 6], "gates": weights} for layer in layers]
    rule = {
        "depth": depth,
        "entered": [100 - 10 * len(layers), 10 * len(layers), *([0] * (len(layers) - 1))][
            : len(layers) + 1
        ],
        "routed": list(routed) if layers else [],
        "experts": [{"layer": layer, "load": list(load), "scores": None} for layer in experts],
    }
    routing = {
        "windows": 10,
        "sequence": 10,
        "edges": [0, 5, 10],
        "ids": [7, 3, 5, 9] if layers else [],
        "texts": [" the", "\n", "|", ""] if layers else [],
        "seen": [50, 20, 16, 4] if layers else [],
        "causal": rule,
        "topk": rule,
    }
    copy: dict[str, Any] = json.loads(json.dumps(routing))  # for a test that changes a part of it
    return copy


def store(folder: Path, records: list[CellRecord], shards: int = 1) -> Path:
    """``records`` in ``shards`` shards under ``folder``, as bytes that no writer made."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        lines = [record.line() + "\n" for record in records[number::shards]]
        (folder / "records" / f"{number:016x}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def plain(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def altered(record: AnyRecord, change: Callable[[dict[str, Any]], None]) -> str:
    """The line of ``record`` after ``change`` to its fields, with the digest of the new line."""
    value = json.loads(record.line())
    change(value)
    value["digest"] = ""
    value["digest"] = hashlib.sha256(plain(value).encode()).hexdigest()
    return plain(value)


def old_line(record: AnyRecord) -> str:
    """The line of ``record`` in the form that records had before they had a digest."""
    value = json.loads(record.line())
    del value["digest"]
    value["schema"] = 2 if value["kind"] == "cell" else 1
    if value["kind"] == "cell":
        del value["kind"]
    elif value["kind"] == "timing":
        value["kind"] = value.pop("measurement")
    return plain(value)


@pytest.fixture
def fakes() -> Any:
    """This module's functions: `make_record`, `make_routing`, `store`, `altered`, `old_line`."""
    import types

    return types.SimpleNamespace(
        make_record=make_record,
        make_routing=make_routing,
        store=store,
        altered=altered,
        old_line=old_line,
    )


@pytest.fixture
def six() -> list[CellRecord]:
    """A record of each built-in scheme."""
    return [
        make_record("vanilla", loss=4.90, cost=1.0),
        make_record("token_choice", loss=4.81, cost=1.02),
        make_record("expert_choice", loss=4.84, cost=1.02),
        make_record("mod", loss=4.86, cost=0.6),
        make_record("mode_staged", loss=4.83, cost=0.61),
        make_record("mode_integrated", loss=4.88, cost=0.85),
    ]


@pytest.fixture
def make() -> Make:
    """`make_record` with a width and the plan of the learning rates, changed by ``plan``."""

    def made(label: str, *, model_width: int, plan: Any = None, **fields: Any) -> CellRecord:
        isoflop = PLAN | (plan or {})
        suite = {"name": "fake", "version": 1, "rank_by": "heldout_loss", "isoflop": isoflop}
        return make_record(label, model={"width": model_width}, suite=suite, **fields)

    return made
