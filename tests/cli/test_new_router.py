"""`modbench new-router`: the package that it writes, as it is and as an installed wheel."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from small_suite import modbench_says

import modbench
from modbench.cli.main import main

COMMIT = "-c user.name=n -c user.email=e commit"
ROOT = Path(modbench.__file__).parent.parent
FILES = {
    ".github/workflows/ci.yml",
    "README.md",
    "my_idea.flops.json",
    "pyproject.toml",
    "src/modbench_my_idea/__init__.py",
    "tests/test_my_idea.py",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(*words: str, cwd: Path, path: str = str(ROOT)) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_package_has_the_name_everywhere(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-router", "my_idea"]) == 0
    assert "my_idea/src/modbench_my_idea/__init__.py holds the router" in capsys.readouterr().out
    folder = place / "my_idea"
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert files == FILES
    texts = {name: (folder / name).read_text() for name in files}
    assert not [name for name, text in texts.items() if "my_router" in text or "MyRouter" in text]
    steps = yaml.safe_load(texts[".github/workflows/ci.yml"])["jobs"]["tests"]["steps"]
    assert "modbench audit my_idea" in [step.get("run") for step in steps]
    assert 'python -m pip install "$MODBENCH" ".[test]"' in [step.get("run") for step in steps]
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["name"] == "modbench-my-idea"
    assert project["entry-points"]["modbench.routers"] == {"my_idea": "modbench_my_idea"}
    assert "class MyIdeaRouter(DepthRouter):" in texts["src/modbench_my_idea/__init__.py"]


@pytest.mark.parametrize(
    ("stated", "source"),
    [
        (
            '{"url": "https://x.org/a", "vcs_info": {"commit_id": "12"}}',
            "modbench @ git+https://x.org/a@12",
        ),
        ('{"url": "file:///home/me/modbench", "dir_info": {}}', "modbench @ file:///home/me/modbench"),
        ('{"url": "file://CLONE", "dir_info": {}}', "modbench @ git+https://x.org/b@HEAD"),
        (None, "modbench"),
    ],
    ids=["git", "folder", "clone", "index"],
)
def test_the_workflow_installs_modbench_from_where_it_came(
    place: Path,
    stated: str | None,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if stated and "CLONE" in stated:
        clone = place / "a clone"
        clone.mkdir()
        for words in ("init", "remote add origin https://x.org/b", f"{COMMIT} --allow-empty -m one"):
            subprocess.run(["git", *words.split()], cwd=clone, check=True, capture_output=True)
        head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=clone, text=True).strip()
        stated, source = stated.replace("CLONE", quote(str(clone))), source.replace("HEAD", head)
    info = place / "modbench-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: modbench\nVersion: 1\n")
    if stated:
        (info / "direct_url.json").write_text(stated)
    monkeypatch.syspath_prepend(str(place))
    assert main(["new-router", "my_idea"]) == 0
    assert ("before you push" in capsys.readouterr().out) == ("file:" in source)
    workflow = yaml.safe_load((place / "my_idea/.github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["tests"]["env"]["MODBENCH"] == source


@pytest.mark.slow
@pytest.mark.processes
def test_wheel_of_the_package_is_listed_and_passes_its_own_tests(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["new-router", "my_idea"]) == 0
    offline = ("--no-deps", "--no-index", "--quiet")
    words = ("wheel", "./my_idea", "--wheel-dir", "wheels", "--no-build-isolation", *offline)
    built = python("-m", "pip", *words, cwd=place)
    assert built.returncode == 0, built.stderr
    (wheel,) = (place / "wheels").glob("modbench_my_idea-*.whl")
    installed = python("-m", "pip", "install", str(wheel), "--target", "site", *offline, cwd=place)
    assert installed.returncode == 0, installed.stderr
    site = place / "site"
    monkeypatch.setenv("PYTHONPATH", str(site))
    code, out = modbench_says(place, "list", "routers")
    assert code == 0, out
    assert "  my_idea\n      Mixture-of-Depths (Raposo et al. 2024) scored by an MLP" in out
    code, out = modbench_says(place, "audit", "my_idea")
    assert code == 0, out
    path = os.pathsep.join((str(ROOT), str(site)))
    tests = python("-m", "pytest", "-q", "my_idea/tests", cwd=place, path=path)
    assert tests.returncode == 0, tests.stdout
    assert "2 passed" in tests.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mod", "a router 'mod' is installed already; choose another name"),
        ("../escape", "'../escape' can't be the name of a router"),
        ("taken", "taken is there already; choose another name, or remove it"),
    ],
)
def test_bad_name_is_one_sentence_and_writes_nothing(
    name: str, words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "taken").mkdir()
    assert main(["new-router", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"modbench: new-router: {words.split(';')[0]}")
    assert words in error
    assert error.count("\n") == 1
    assert [str(path.relative_to(place)) for path in place.rglob("*")] == ["taken"]
