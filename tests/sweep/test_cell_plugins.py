"""A cell whose plugin file has changed since the run began."""

import json
import os
import subprocess
import sys
from pathlib import Path

import modbench

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
