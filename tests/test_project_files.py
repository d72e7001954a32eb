"""Files around the package: one version, type information, the same checks everywhere."""

import re
import tomllib
from pathlib import Path

import nox
import yaml

import modbench

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sessions_in(text: str) -> list[str]:
    """Names of the nox sessions that the commands of ``text`` run, in order."""
    runs = [line.partition("nox -s ")[2].split() for line in text.splitlines() if "nox -s " in line]
    return [name for words in runs for name in words if re.fullmatch(r"[a-z-]+", name)]


def commands_of(workflow: Path) -> str:
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    return "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])


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
    assert not [name for name in files if name.startswith(("tests/", "results/"))]


def test_the_citation_file_has_what_its_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == PYPROJECT["project"]["license"]


def test_every_way_to_run_ci_runs_the_same_sessions() -> None:
    script = sessions_in((ROOT / ".ci" / "run").read_text())
    workflow = sessions_in(commands_of(ROOT / ".github" / "workflows" / "ci.yml"))
    assert script == workflow == ["tests", "lint", "flops"]
    defined = (ROOT / "noxfile.py").read_text()
    assert all(f"def {name}(session" in defined for name in script)
    assert nox.__name__ in commands_of(ROOT / ".github" / "workflows" / "ci.yml")


def test_the_workflow_tests_the_oldest_and_the_newest_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    classifiers = PYPROJECT["project"]["classifiers"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == [versions[0], versions[-1]]


def test_hooks_run_the_tools_of_lint_without_a_network() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    run = [hook["entry"].removeprefix("python -m ") for hook in hooks]
    assert run == ["ruff format", "ruff check", "mypy"]
    text = (ROOT / "noxfile.py").read_text()
    lint = text[text.index("def lint(") :].split("@nox.session")[0]
    for words in run:
        assert "".join(f', "{word}"' for word in words.split()) in lint


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


def test_no_project_urls_without_a_place_to_link_to() -> None:
    assert "urls" not in PYPROJECT["project"]
