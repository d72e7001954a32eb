"""Routers of installed packages: their code is part of the key of a run."""

import csv
from pathlib import Path

import pytest
from small_suite import install, modbench_says, write_suite

from modbench.records.store import read_suite

CODE = """from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("shipped")
@dataclass(frozen=True, kw_only=True)
class Shipped(Router):
    def build_layer(self, model, layer):
        return Block(model, layer)
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that processes find, with the package of the router shipped."""
    folder = tmp_path / "packages"
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    install(folder, "shipped", CODE)
    return folder


def run(place: Path) -> str:
    code, out = modbench_says(place, "run", "suite.toml")
    assert code == 0, out
    return out


def test_an_edited_package_trains_again_in_a_row_of_its_own(packages: Path, tmp_path: Path) -> None:
    write_suite(tmp_path, "ships", "vanilla", "shipped")
    folder = tmp_path / "my-results" / "ships"
    run(tmp_path)
    assert "2 of 2 runs done" in run(tmp_path)
    before = {record.key: record for record in read_suite(folder).runs}
    (packages / "shipped" / "part.py").write_text("changed = True\n")
    run(tmp_path)
    (added,) = [record for record in read_suite(folder).runs if record.key not in before]
    (old,) = [one for one in before.values() if one.what.router.name == "shipped"]
    hashes = [record.what.router.plugin_sha256 for record in (old, added)]
    assert len({None, *hashes}) == 3
    with (folder / "leaderboard.csv").open() as table:
        shown = [row["plugin_sha256"] for row in csv.DictReader(table) if row["router"] == "shipped"]
    assert sorted(shown) == sorted(hashes)
    page = (folder / "leaderboard.md").read_text()
    assert all(f"Plugin: shipped, code with sha256 {digest}." in page for digest in hashes)
    code, out = modbench_says(tmp_path, "sample", f"ships/{old.key}", "--prompt", "one", "--tokens", "2")
    assert code == 0, out
    assert f"trained with other code of router 'shipped': that has sha256 {hashes[0][:12]}" in out
