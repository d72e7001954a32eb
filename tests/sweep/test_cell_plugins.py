"""A cell whose plugin file is not what it was when the run began."""

import json
import os
import subprocess
import sys
from pathlib import Path

import modbench

PLUGIN = """
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.model.registry import register_router
from modbench.model.router import Router

@register_router("edited")
@dataclass(frozen=True, kw_only=True)
class Edited(Router):
    def build_layer(self, model, layer):
        return Block(model, layer)
"""


def test_a_plugin_that_was_edited_since_is_not_trained(tmp_path: Path) -> None:
    (tmp_path / "edited.py").write_text(PLUGIN)
    router = {"name": "edited", "options": {}, "plugin_sha256": 64 * "0", "label": "edited"}
    spec = {
        "suite": {},
        "cell": {"router": router},
        "plugins": ["edited.py"],
        "results": "results",
        "folder": "folder",
        "threads": 1,
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    done = subprocess.run(
        [sys.executable, "-m", "modbench", "cell", "spec.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "modbench: router 'edited': its plugin file, or one that it imports, has changed since this run "
        "began; run the command again\n"
    )
    assert not (tmp_path / "folder").exists()
