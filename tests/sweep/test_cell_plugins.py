"""A cell whose plugin file is not what it was when the run began, or changes the whole process."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cell_lets_go import small

import modbench
from modbench.errors import UserError
from modbench.report.store import read_records
from modbench.sweep import cell as cells

PLUGIN = """
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("edited")
@dataclass(frozen=True, kw_only=True)
class Edited(Router):
    def build_layer(self, model, layer):
        return Block(model, layer)
"""


def cell_of(plugin: str, digest: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """`modbench cell` of a specification whose router is in ``plugin``."""
    (folder / "edited.py").write_text(plugin)
    router = {"name": "edited", "options": {}, "plugin_sha256": digest, "label": "edited"}
    spec = {
        "suite": {},
        "cell": {"router": router},
        "plugins": ["edited.py"],
        "results": "results",
        "folder": "folder",
        "threads": 1,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return subprocess.run(
        [sys.executable, "-m", "modbench", "cell", "spec.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_plugin_that_was_edited_since_is_not_trained(tmp_path: Path) -> None:
    done = cell_of(PLUGIN, 64 * "0", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "modbench: router 'edited': its plugin file, or its package, has changed since this run "
        "began; run the command again\n"
    )
    assert not (tmp_path / "folder").exists()


CHANGED = "what was to be measured changed its whole process: "


def test_a_plugin_that_changes_its_whole_process_is_not_trained(tmp_path: Path) -> None:
    plugin = f"import torch; torch.set_flush_denormal(True){PLUGIN}"
    done = cell_of(plugin, hashlib.sha256(plugin.encode()).hexdigest(), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"modbench: {CHANGED}subnormal numbers from kept to flushed to 0; ")
    assert not (tmp_path / "folder").exists()


def test_a_router_that_changes_it_while_it_trains_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, data = small(tmp_path)
    monkeypatch.setattr(cells, "load", lambda config: data)
    monkeypatch.setattr(cells, "_measure", lambda *_: torch.set_grad_enabled(False))
    monkeypatch.setattr(cells, "_StopFlag", lambda: lambda: False)
    monkeypatch.setattr(cells, "make_deterministic", lambda: None)
    monkeypatch.setattr(cells.torch, "set_num_threads", lambda threads: None)
    with (
        torch.enable_grad(),
        pytest.raises(UserError, match=f"{CHANGED}gradients from True to False; a router leaves"),
    ):
        cells.run_cell(spec | {"results": str(tmp_path / "s")}, lambda event: None)
    assert not read_records(tmp_path / "s")
