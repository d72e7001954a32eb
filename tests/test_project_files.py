"""Files around the package: one version, type information, the same checks everywhere."""

import re
import tomllib
from pathlib import Path

import yaml

import modbench

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_has_one_source() -> None:
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "modbench/__init__.py"
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f"## {modbench.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_build_finds_the_version() -> None:
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    metadata = ProjectMetadata(str(ROOT), PluginManager())
    assert metadata.version == modbench.__version__


def test_the_wheel_has_type_information_and_no_tests() -> None:
    from hatchling.builders.wheel import WheelBuilder

    files = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert "modbench/py.typed" in files
    assert "modbench/cli/package/router.py.in" in files
    pages = "modbench/report/html"
    assert f"{pages}/templates/suite.html.j2" in files
    vendored = {"sortable.min.js", "sortable.LICENSE.txt", "uPlot.iife.min.js", "uPlot.LICENSE.txt"}
    assert {f"{pages}/assets/vendor/{name}" for name in vendored} <= files
    assert not [name for name in files if name.startswith(("tests/", "results/"))]


def test_every_path_of_the_guide_to_contributing_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:modbench|tests|tools|suites|docs|results)/[\w/.]*)`", text)
    paths += re.findall(r"\]\(([^)#:]+)\)", text)
    placeholders = ("NAME", "OP")
    for path in paths:
        if not any(word in path for word in placeholders):
            assert (ROOT / path).exists(), path
    sessions = re.findall(r"`nox -s ([a-z-]+)", text)
    names = re.findall(r'name="([a-z-]+)"', (ROOT / "noxfile.py").read_text())
    defined = (ROOT / "noxfile.py").read_text()
    assert all(name in names or f"def {name}(session" in defined for name in sessions)


def test_the_tests_that_start_first_exist() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    names = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    first = set(re.findall(r'^    "(test_\w+)",$', (ROOT / "tests" / "conftest.py").read_text(), re.M))
    assert first
    assert first <= names
