"""The gate: changed, missing and new keys each fail, and a summary says so."""

import json
import math
import sys
from collections.abc import Iterator
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from modbench.accounting import gate
from modbench.accounting.gate import GOLDEN, run_gate
from modbench.errors import UserError
from modbench.ledger import Ledger
from modbench.model import layer
from modbench.routing import registry, topk
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


_count = gate.current


@pytest.fixture(scope="module", autouse=True)
def _built_in_routers_are_counted_once() -> Iterator[None]:
    counted = {tuple(gate.built_in()): gate.current(gate.built_in())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "current", lambda names: counted.get(tuple(names)) or _count(names))
        yield


@pytest.fixture
def _counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "current", _count)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.json"
    path.write_bytes(GOLDEN.read_bytes())
    return path


def test_the_committed_table_is_what_the_routers_spend(capsys: pytest.CaptureFixture) -> None:
    assert run_gate(GOLDEN) == 0
    rows = sum(1 + len(router_class(name).presets) for name in gate.built_in())
    shapes, phases, conventions = 5, 4, 10
    counts = rows * shapes * phases * conventions
    assert f"{counts} FLOP counts equal" in capsys.readouterr().out


def test_changed_missing_and_new_keys_each_fail(golden: Path, capsys: pytest.CaptureFixture) -> None:
    table = json.loads(golden.read_text())
    table["mod/1M/train"][0] += 1
    table["gone/1M/train"] = [7] * 10
    del table["vanilla/1M/forward"]
    golden.write_text(json.dumps(table))
    assert run_gate(golden) == 1
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["router/shape/phase/convention", "old", "new"] in rows
    old, new = (f"{table['mod/1M/train'][0] - step:,}" for step in (0, 1))
    assert ["changed", "mod/1M/train/model", old, new] in [row[:4] for row in rows]
    assert ["missing", "gone/1M/train/model", "7", "-"] in rows
    assert ["new", "vanilla/1M/forward/full", "-"] in [row[:3] for row in rows]
    assert f"21 FLOP counts differ from {golden}; if that is meant, add --accept" in out


def test_the_message_begins_with_what_moved_and_by_how_much(
    golden: Path, capsys: pytest.CaptureFixture
) -> None:
    table = json.loads(golden.read_text())
    table["mod/1M/train"][0] *= 2  # the count is half of the table's now
    table["mod:half/7B/train"] = [4 * count for count in table["mod:half/7B/train"]]
    table["mod:half/7B/decode"] = [count // 5 + 1 for count in table["mod:half/7B/decode"]]
    del table["vanilla/1M/forward"]
    golden.write_text(json.dumps(table))
    assert run_gate(golden) == 1
    first, heads, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert first[0] == "31"
    assert heads == ["router", "changed", "missing", "new", "at", "most", "at"]
    assert rows[0] == ["mod", "1", "0", "0", "-50%", "1M/train/model"]
    assert rows[1][:5] == ["mod:half", "20", "0", "0", "+400%"]
    assert rows[1][5].startswith("7B/decode/")
    assert rows[2] == ["vanilla", "0", "0", "10"]
    assert not rows[3]


def test_lengths_and_widths_show_rounding_and_padding() -> None:
    odd = gate.SHAPES["odd"].model
    widths = [odd.vocabulary, odd.width, odd.hidden, odd.head_width, odd.hidden // 2, odd.hidden // 8]
    assert not [width for width in widths if width % 16 == 0]
    assert {250, 1001} <= {size.sequence for size in gate.SHAPES.values()}


def _summary(golden: Path, capsys: pytest.CaptureFixture) -> dict[str, str]:
    """Return the shape with the largest change of each router and preset of the gate's summary."""
    assert run_gate(golden) == 1
    rows = capsys.readouterr().out.partition("\n\n")[0].splitlines()[2:]
    return {row.split()[0]: row.split()[-1].partition("/")[0] for row in rows}


def _rows() -> set[str]:
    names = gate.built_in()
    return {*names, *(f"{name}:{preset}" for name in names for preset in router_class(name).presets)}


@pytest.mark.usefixtures("_counted_again")
def test_a_capacity_that_is_rounded_down_is_seen(
    golden: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(capacity: float, tokens: int, among: int) -> int:
        return max(1, math.floor(Fraction(repr(capacity)) * tokens / among))

    monkeypatch.setattr(topk, "_share", down)
    moved = _summary(golden, capsys)
    by_capacity = "mod expert_choice expert_threshold mixture_of_recursions mode_staged threshold_skip"
    assert set(moved) == {name for name in _rows() if name.partition(":")[0] in by_capacity.split()}
    assert set(moved.values()) == {"1M-250", "odd"}


@pytest.mark.usefixtures("_counted_again")
def test_widths_that_are_padded_are_seen_in_every_scheme(
    golden: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul = layer.matmul

    def padded(*args: Any, inner: int, **options: Any) -> Ledger:
        return matmul(*args, inner=-(-inner // 64) * 64, **options)

    monkeypatch.setattr(layer, "matmul", padded)
    moved = _summary(golden, capsys)
    assert set(moved) == _rows()
    assert moved["vanilla"] == moved["mod"] == moved["token_choice"] == "odd"


@pytest.mark.usefixtures("_counted_again")
def test_invalid_options_are_one_line_for_each_router(
    golden: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = {**router_class("mod").presets, "half": {"share": 0.5}, "gaussian": {"scores": 3}}
    monkeypatch.setattr(router_class("mod"), "presets", presets)
    monkeypatch.setattr(router_class("vanilla"), "build_layer", None)
    table = json.loads(golden.read_text())
    table["mod/1M/train"][0] += 1
    golden.write_text(json.dumps(table))
    assert run_gate(golden) == 1
    total, *lines = capsys.readouterr().out.splitlines()
    assert total.startswith("1 FLOP counts differ")
    assert [line.split()[0] for line in lines[:4]] == ["vanilla", "mod:half", "mod:gaussian", "router"]
    assert "has no 'share'" in lines[1]
    assert lines[4].split()[:2] == ["mod", "1"]
    assert run_gate(golden, accept=True) == 1
    assert json.loads(golden.read_text()) == table


@pytest.mark.usefixtures("_counted_again")
def test_a_router_that_cannot_be_imported_is_one_line(
    golden: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(registry._registered, "mod")
    monkeypatch.setitem(sys.modules, "modbench.routers.mod", None)  # an import raises
    assert run_gate(golden) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("mod can't be counted: ")
    with pytest.raises(UserError, match="is not known"):
        run_gate(golden.with_name("other.json"), routers=["unknown_test_router"], accept=True)


def test_a_plugin_has_no_counts_at_a_shape_that_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, table = tmp_path / "tiles.py", tmp_path / "tiles.json"
    check = "if model.width % TILE: raise UserError(f'width {model.width} is no multiple of {TILE}')"
    source = PLUGIN.replace("gated_test_router", "tiles_test_router")
    source = source.replace("        return Block", f"        {check}\n        return Block")
    plugin.write_text(f"from modbench.errors import UserError\nTILE = 64\n{source}")
    assert run_gate(table, plugins=[plugin], accept=True) == 0
    assert "width 200 is no multiple of 64 (shape odd)" in capsys.readouterr().out
    assert run_gate(table, plugins=[plugin]) == 0
    module = sys.modules[router_class("tiles_test_router").__module__]
    monkeypatch.setattr(module, "TILE", 256)  # now the width of 1M is refused, too
    assert run_gate(table, plugins=[plugin]) == 1
    assert "tiles_test_router can't be counted" in capsys.readouterr().out


def test_accepting_makes_it_pass(golden: Path) -> None:
    golden.write_text('{"router/shape/phase": []}')
    assert run_gate(golden) == 1
    assert run_gate(golden, accept=True) == 0
    assert run_gate(golden) == 0
    assert golden.read_bytes() == GOLDEN.read_bytes()


def _keys(table: Path) -> list[str]:
    return [key for key in json.loads(table.read_text()) if key != "router/shape/phase"]


def test_a_plugin_is_held_against_its_own_table(tmp_path: Path) -> None:
    plugin, table = tmp_path / "mine.py", tmp_path / "mine.json"
    plugin.write_text(PLUGIN)
    assert run_gate(table, plugins=[plugin], accept=True) == 0
    assert {key.split("/")[0] for key in _keys(table)} == {"gated_test_router"}
    assert run_gate(table, plugins=[plugin]) == 0
    routers = files("modbench.routers").iterdir()
    assert set(gate.built_in()) < {file.name.removesuffix(".py") for file in routers}
    assert {"vanilla", "mod", "relu_routing"} <= set(gate.built_in())


def test_a_router_that_is_named_has_a_table_of_its_own(tmp_path: Path) -> None:
    table = tmp_path / "skip.json"
    assert run_gate(table, routers=["threshold_skip"], accept=True) == 0
    assert {key.partition("/")[0].partition(":")[0] for key in _keys(table)} == {"threshold_skip"}
    assert run_gate(table, routers=["threshold_skip"]) == 0
    with pytest.raises(UserError, match="--router needs --golden FILE"):
        run_gate(GOLDEN, routers=["threshold_skip"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file .* make it with --accept"),
        ("{", "can't be read"),
        ("[1]", "must hold"),
        ('{"mod/1M/train/model": 7}', "must hold .* make it with --accept"),
        ('{"router/shape/phase": ["model", "full"], "mod/1M/train": [7]}', "must hold"),
        ('{"router/shape/phase": ["model"], "mod/1M/train": [7.5]}', "must hold"),
    ],
)
def test_a_table_that_is_none_is_refused(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        run_gate(path)
