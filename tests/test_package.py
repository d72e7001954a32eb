"""modbench as an installed package, and a package that brings a router."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.full

FOREIGN = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "foreign-router"
version = "1"
[project.entry-points."modbench.routers"]
foreign = "foreign_router"
""",
    "foreign_router.py": """
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("foreign")
@dataclass(frozen=True, kw_only=True)
class Foreign(Router):
    strength: float = 1.0
    def build_layer(self, model, layer):
        return Block(model, layer)
""",
}


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", *words, "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(ROOT), "--wheel-dir", str(folder))
    (found,) = folder.glob("modbench-*.whl")
    return found


def installed(site: Path, *words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run `python -m modbench` from ``site``."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = (
        "import runpy, sys; sys.argv[0] = 'modbench'; runpy.run_module('modbench', run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=cwd, env=environment
    )


def test_a_wheel_brings_suites_pages_tasks_and_the_flop_table(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "modbench/suites/quick.toml",
        "modbench/docs/writing_a_router.md",
        "modbench/evaluate/tasks/modbench_cloze/modbench_cloze.yaml",
        "modbench/evaluate/tasks/_choice_yaml",
        "modbench/accounting/golden.json",
        "modbench/data/pypi-en-v1.jsonl.xz",
        "modbench/data/pypi-en-v1.LICENSE.txt",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "results/"))]


@pytest.mark.network
def test_an_empty_environment_runs_the_quick_suite_outside_a_checkout(tmp_path: Path) -> None:
    python = tmp_path / "environment" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)

    for command in (
        (sys.executable, "-m", "virtualenv", "--quiet", tmp_path / "environment"),
        (python, "-m", "pip", "install", "--quiet", ROOT),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    where = run(python, "-c", "import modbench; print(modbench.__file__)").stdout
    assert where.startswith(str(tmp_path / "environment"))
    modbench = python.with_name("modbench")
    gate = run(modbench, "flops", "gate")
    assert gate.returncode == 0, gate.stdout + gate.stderr
    missing = run(modbench, "run", "quik")
    assert missing.returncode == 2
    assert "did you mean 'quick'" in missing.stderr
    ran = run(modbench, "run", "quick", "--only", "mod")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    header, row = (tmp_path / "my-results" / "quick" / "leaderboard.csv").read_text().splitlines()
    assert row.split(",")[header.split(",").index("label")] == "mod"


def test_the_entry_point_of_an_installed_package_is_a_router(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, text in FOREIGN.items():
        (source / name).write_text(text)
    pip("install", str(source), "--target", str(site))
    listed = installed(site, "list", "routers", cwd=tmp_path)
    assert "foreign" in listed.stdout, listed.stderr
    counted = installed(site, "flops", "--router", "foreign", "--option", "strength=2", cwd=tmp_path)
    assert counted.returncode == 0, counted.stderr
    assert "ratio to the dense model of the same shape 1.0000" in counted.stdout
    gate = installed(site, "flops", "gate", cwd=tmp_path)
    assert gate.returncode == 0, gate.stdout  # the table has only built-in routers
