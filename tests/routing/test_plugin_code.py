"""The hash of a plugin's code: its file, and what it imports of its author's."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

ROUTER = """
import sys
sys.path.insert(0, {folder!r})
{imports}
from dataclasses import dataclass
import torch
from modbench.routing.registry import register_router
from modbench.routers.vanilla import Vanilla

@register_router("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(Vanilla): ...
"""


def hash_of(folder: Path, name: str, *before: str) -> str:
    """In a process of its own, which loads ``before`` first: modules stay loaded."""
    code = (
        "from modbench.model import registry\n"
        f"for one in {[*before, name]!r}: registry.load_plugin({str(folder)!r} + f'/{{one}}.py')\n"
        f"print(registry.plugin_sha256({name!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one_helper.py").write_text("import deep_helper\nimport json\n")
    (tmp_path / "deep_helper.py").write_text("SCALE = 1.0\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "part.py").write_text("from . import other\n")
    (tmp_path / "own_package" / "other.py").write_text("SCALE = 1.0\n")
    for name, imports in (
        ("alone", "import os"),
        ("helped", "import one_helper"),
        ("also", "import one_helper"),
        ("packaged", "from own_package.part import other"),
        ("late", "def later():\n    import one_helper\n    from own_package.part import other"),
    ):
        text = ROUTER.format(name=name, imports=imports, folder=str(tmp_path))
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_a_plugin_of_one_file_has_that_files_hash(folder: Path) -> None:
    assert hash_of(folder, "alone") == hashlib.sha256((folder / "alone.py").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("helped", "one_helper.py"),
        ("helped", "deep_helper.py"),
        ("packaged", "own_package/__init__.py"),
        ("packaged", "own_package/other.py"),
        ("late", "one_helper.py"),
        ("late", "deep_helper.py"),
        ("late", "own_package/other.py"),
    ],
)
def test_a_change_of_what_it_imports_changes_its_hash(name: str, file: str, folder: Path) -> None:
    before = hash_of(folder, name)
    (folder / file).write_text((folder / file).read_text() + "# changed\n")
    assert hash_of(folder, name) != before


def test_what_another_plugin_has_imported_already_counts_as_well(folder: Path) -> None:
    assert hash_of(folder, "helped", "also") == hash_of(folder, "helped")


def test_what_is_imported_when_a_layer_runs_counts_whoever_has_imported_it_already(folder: Path) -> None:
    assert hash_of(folder, "late", "also", "packaged") == hash_of(folder, "late")


def test_a_module_that_no_import_has_run_yet_may_be_no_python(folder: Path) -> None:
    (folder / "deep_helper.py").write_text("def broken(:")
    before = hash_of(folder, "late")
    (folder / "deep_helper.py").write_text("def broken(::")
    assert hash_of(folder, "late") != before
