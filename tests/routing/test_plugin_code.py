"""The hash of a plugin's code: its file, or its package."""

import hashlib
from pathlib import Path

import pytest

from modbench.routing.registry import code_sha256


def test_a_single_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "alone.py"
    file.write_text("import os\n")
    (tmp_path / "other.py").write_text("x = 1\n")
    assert code_sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("changed", ["__init__.py", "helper.py", "routers/mine.py"])
def test_any_file_of_the_package_changes_the_hash(changed: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "routers").mkdir(parents=True)
    for name in ("__init__.py", "helper.py", "routers/__init__.py", "routers/mine.py"):
        (package / name).write_text("x = 1\n")
    before = code_sha256(package / "routers" / "mine.py")
    (tmp_path / "outside.py").write_text("x = 1\n")
    assert code_sha256(package / "routers" / "mine.py") == before
    (package / changed).write_text("x = 2\n")
    assert code_sha256(package / "routers" / "mine.py") != before
