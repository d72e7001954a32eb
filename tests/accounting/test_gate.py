"""The gate: changed, missing and new keys each fail, and say so."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from modbench.accounting import gate
from modbench.accounting.gate import GOLDEN, run_gate
from modbench.errors import UserError
from modbench.routing.registry import router_class

PLUGIN = """
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("gated_test_router")
@dataclass(frozen=True, kw_only=True)
class Mine(Router):
    def build_layer(self, model, layer):
        return Block(model, layer)
"""


@pytest.fixture(scope="module", autouse=True)
def _built_in_routers_are_counted_once() -> Iterator[None]:
    counted = {tuple(gate.built_in()): gate.current(gate.built_in())}
    with pytest.MonkeyPatch.context() as patch:
        count = gate.current
        patch.setattr(gate, "current", lambda names: counted.get(tuple(names)) or count(names))
        yield


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.json"
    path.write_bytes(GOLDEN.read_bytes())
    return path


def test_the_committed_table_is_what_the_routers_spend(capsys: pytest.CaptureFixture) -> None:
    assert run_gate(GOLDEN) == 0
    rows = sum(1 + len(router_class(name).presets) for name in gate.built_in())
    shapes, phases, conventions = 3, 4, 10
    counts = rows * shapes * phases * conventions
    assert f"{counts} FLOP counts equal" in capsys.readouterr().out


def test_changed_missing_and_new_keys_each_fail(golden: Path, capsys: pytest.CaptureFixture) -> None:
    table = json.loads(golden.read_text())
    table["mod/1M/train/model"] += 1
    table["gone/1M/train/model"] = 7
    del table["vanilla/1M/forward/full"]
    golden.write_text(json.dumps(table))
    assert run_gate(golden) == 1
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["router/shape/phase/convention", "old", "new"] in rows
    old, new = (f"{table['mod/1M/train/model'] - step:,}" for step in (0, 1))
    assert ["changed", "mod/1M/train/model", old, new] == rows[2][:4]
    assert ["missing", "gone/1M/train/model", "7", "-"] in rows
    assert ["new", "vanilla/1M/forward/full", "-"] in [row[:3] for row in rows]
    assert "3 FLOP counts differ" in out
    assert f"differ from {golden}; if that is meant, add --accept" in out


def test_accepting_makes_it_pass(golden: Path) -> None:
    golden.write_text("{}")
    assert run_gate(golden) == 1
    assert run_gate(golden, accept=True) == 0
    assert run_gate(golden) == 0
    assert golden.read_bytes() == GOLDEN.read_bytes()


def test_a_plugin_is_held_against_its_own_table(tmp_path: Path) -> None:
    plugin, table = tmp_path / "mine.py", tmp_path / "mine.json"
    plugin.write_text(PLUGIN)
    assert run_gate(table, plugins=[plugin], accept=True) == 0
    assert {key.split("/")[0] for key in json.loads(table.read_text())} == {"gated_test_router"}
    assert run_gate(table, plugins=[plugin]) == 0
    routers = files("modbench.routers").iterdir()
    assert set(gate.built_in()) < {file.name.removesuffix(".py") for file in routers}
    assert {"vanilla", "mod", "relu_routing"} <= set(gate.built_in())


def test_a_router_that_is_named_has_a_table_of_its_own(tmp_path: Path) -> None:
    table = tmp_path / "skip.json"
    assert run_gate(table, routers=["threshold_skip"], accept=True) == 0
    assert {key.partition("/")[0].partition(":")[0] for key in json.loads(table.read_text())} == {
        "threshold_skip"
    }
    assert run_gate(table, routers=["threshold_skip"]) == 0
    with pytest.raises(UserError, match="--router needs --golden FILE"):
        run_gate(GOLDEN, routers=["threshold_skip"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file .* make it with --accept"),
        ("{", "can't be read"),
        ("[1]", "must map"),
    ],
)
def test_a_table_that_is_none_is_refused(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        run_gate(path)
