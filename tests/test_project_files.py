"""Files around the package: one version, type information, the same checks everywhere."""

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


def test_the_wheel_has_type_information_and_no_tests() -> None:
    from hatchling.builders.wheel import WheelBuilder

    files = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert "modbench/py.typed" in files
    assert "modbench/cli/package/router.py.in" in files
    pages = "modbench/report/html"
    assert f"{pages}/assets/page.html.j2" in files
    vendored = {"sortable.min.js", "sortable.LICENSE.txt", "vega.LICENSE.txt"}
    assert {f"{pages}/assets/vendor/{name}" for name in vendored} <= files
    assert not [name for name in files if name.startswith(("tests/", "results/"))]
