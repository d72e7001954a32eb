"""The README: its commands and snippets do what it says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import modbench
from modbench.records.result import results_of
from modbench.records.store import read_suite
from modbench.report.audited import even_gates, idle_layers
from modbench.sweep.suite import load_suite

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def tutorial() -> str:
    (code,) = (code for code in blocks("python") if "@register_router" in code)
    return code


def test_the_committed_results_are_of_all_schemes_and_of_committed_code() -> None:
    results = results_of(read_suite(ROOT / "results" / "quick"))
    suite = load_suite("quick")
    wanted = {(scheme.label, seed) for scheme in suite.schemes for seed in suite.axes.seeds}
    assert {(result.label, result.seed) for result in results} == wanted
    for result in results:
        assert result.status == "ok"
        assert result.record.code["dirty"] is False
        assert result.metrics["heldout_loss"] < result.metrics["unigram_loss"] - 0.5


def test_every_python_snippet_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (code for code in blocks("python") if "FlopCounter" in code)
    exec(code, {})
    assert int(capsys.readouterr().out.split()[0]) == 2 * 2 * 8 * 64 * 64


def test_the_two_commands_are_sessions_that_exist() -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if "nox" in line]
    assert commands == [
        "python -m pip install nox && python -m nox -s bench",
        "python -m pip install nox && python -m nox -s tests",
    ]
    sessions = (ROOT / "noxfile.py").read_text()
    for name in ("bench", "tests"):
        assert f"def {name}(session" in sessions
    assert commands[1] in (ROOT / ".ci" / "run").read_text().replace(" --quiet", "")


def test_the_tutorial_is_an_example_of_twenty_lines() -> None:
    assert tutorial() == (ROOT / "examples" / "mlp_mod.py").read_text()
    assert len(tutorial().splitlines()) <= 20


@pytest.mark.full
@pytest.mark.network
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "mlp_mod.py").write_text(tutorial())
    commands = [line for block in blocks("sh") for line in block.splitlines() if "mlp_mod" in line]
    assert commands == [
        "modbench check mlp_mod.py",
        "modbench run quick --plugin mlp_mod.py --only vanilla mlp_mod --results my-results",
        "modbench run quick --plugin mlp_mod.py --results my-results",
    ]
    for command in commands[:2]:  # the third is the second with the schemes that quick has
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
    found = read_suite(tmp_path / "my-results" / "quick")
    results = [result for result in results_of(found) if result.scheme == "mlp_mod"]
    assert [result.run.seed for result in results] == [0, 1]
    for result in results:
        assert result.run.router.name == "mlp_mod"
        assert result.run.router.plugin_sha256 is not None
        findings = [*found.audits[result.audit_key].audit, *result.audit]
        assert all(finding.verdict != "failed" for finding in findings)
        assert result.metrics["heldout_loss"] < result.metrics["unigram_loss"] - 0.5
    assert idle_layers([of.layers for of in results]) == []
    assert even_gates([(of.routing, of.layers) for of in results]) == []
    table = (tmp_path / "my-results" / "quick" / "leaderboard.csv").read_text()
    assert "mlp_mod" in table
