"""modbench verify: recorded runs are trained again and compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_suite import modbench_says, write_suite

from modbench.records.line import canonical_json, sha256

TEXT = ("--allow", "text.txt")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a small suite."""
    place = tmp_path_factory.mktemp("verify")
    write_suite(place, "tiny", "mod", model={"layers": 2})
    code, out = modbench_says(place, "run", "suite.toml", "--results", "results")
    assert code == 0, out
    return place


def forged(place: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Copy the results to the folder ``name`` with records that ``change`` alters, digests included."""
    for path in (place / "results" / "tiny" / "records").glob("*.jsonl"):
        record = json.loads(path.read_text())
        change(record)
        unsigned = canonical_json({**record, "digest": ""})
        line = unsigned.replace('"digest":""', f'"digest":"{sha256(unsigned)}"', 1)
        copy = place / name / "tiny" / "records" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(f"{line}\n")


def shift_loss(record: dict[str, Any], by: float) -> None:
    if record["kind"] == "measurement":
        record["result"]["metrics"]["heldout_loss"] += by


def test_a_run_comes_out_equal_to_the_bit_and_nothing_is_stored(place: Path) -> None:
    before = sorted(place.rglob("*"))
    code, out = modbench_says(place, "verify", "results/tiny/mod#0", *TEXT)
    assert code == 0, out
    assert "exact metrics equal; " in out
    assert " quality metrics equal to the bit\n" in out
    assert "1 run: 1 equal in every digit\n" in out
    assert sorted(place.rglob("*")) == before


def test_a_forged_loss_is_found(place: Path) -> None:
    forged(place, "wrong", lambda record: shift_loss(record, 1e-9))
    record = next((place / "wrong" / "tiny" / "records").glob("*.jsonl"))
    code, out = modbench_says(place, "verify", "--all", "--sample", "3", "--results", "wrong", *TEXT)
    assert code == 1, out
    assert "heldout_loss" in out
    assert "1 run: not verified: tiny/mod" in out
    code, out = modbench_says(
        place, "verify", str(record.relative_to(place).parent.parent / "mod"), *TEXT
    )
    assert code == 1, out


def test_another_machine_may_differ_a_little_and_is_named(place: Path) -> None:
    def elsewhere(record: dict[str, Any]) -> None:
        shift_loss(record, 0.01)
        record["environment"]["cpu"] = "Another CPU"

    forged(place, "elsewhere", elsewhere)
    code, out = modbench_says(place, "verify", "tiny/mod", "--results", "elsewhere", *TEXT)
    assert code == 0, out
    assert "processor: Another CPU |" in out
    assert "1 not equal, within what another machine explains" in out
    code, out = modbench_says(
        place, "verify", "tiny", "--results", "elsewhere", "--within", "0.001", *TEXT
    )
    assert code == 1, out


def test_another_text_is_refused(place: Path) -> None:
    forged(place, "other", lambda record: record.get("data", {}).update(sha256="0" * 64))
    code, out = modbench_says(place, "verify", "other/tiny", *TEXT)
    assert code == 1, out
    assert "Traceback" not in out
    assert "was trained on other text (sha256 000000000000)" in out
