"""The README: its length, its links, and that its commands and snippets do what it says."""

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
from modbench.report.layers import idle_layers
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
        assert result.code["dirty"] is False
        assert result.metrics["heldout_loss"] < result.metrics["unigram_loss"] - 0.5


def test_the_committed_report_follows_from_the_committed_records(tmp_path: Path) -> None:
    """The table to the byte; figures carry the version of the library that drew them."""
    from modbench.report.page import write_report

    source = ROOT / "results" / "quick"
    for shard in source.glob("*/*.jsonl"):  # records and timings
        copy = tmp_path / "quick" / shard.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(shard.read_bytes())
    written = write_report(tmp_path / "quick").paths
    committed = {path.name for path in source.iterdir() if path.suffix in (".csv", ".md", ".svg")}
    assert {path.name for path in written if path.suffix != ".png"} == committed
    for path in written:
        if path.suffix not in (".csv", ".md"):
            continue
        name = path.name
        assert (tmp_path / "quick" / name).read_bytes() == (source / name).read_bytes()


def test_the_try_without_pytorch_loads_none() -> None:
    (line,) = [line for line in README.splitlines() if line.startswith('python -c "from modbench')]
    code = shlex.split(line)[2] + "; import sys; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1e12


def test_it_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_every_python_snippet_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (code for code in blocks("python") if "FlopCounter" in code)
    exec(code, {})
    counted, closed = capsys.readouterr().out.splitlines()
    assert int(counted.split()[0]) == 2 * 2 * 8 * 64 * 64
    assert int(closed) > 1e12


def test_no_command_of_the_tutorial_writes_to_tracked_results() -> None:
    for block in blocks("sh"):
        for line in block.splitlines():
            assert ("modbench run" in line) == ("--results my-results" in line), line


def test_installing_is_a_step_of_its_own() -> None:
    assert "python -m pip install .\n" in blocks("sh")


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        if not link.startswith("../../actions/"):  # of the site that holds the repository
            assert (ROOT / link).exists(), link


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
        "modbench flops --router mlp_mod --plugin mlp_mod.py",
        "modbench run quick --plugin mlp_mod.py --only mlp_mod --results my-results",
        "modbench run quick --plugin mlp_mod.py --results my-results",
    ]
    said = []
    for command in commands[:3]:  # the fourth is the third with the schemes that quick has
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    assert "ratio to the dense model" in said[1]
    found = read_suite(tmp_path / "my-results" / "quick")
    result, _ = results_of(found)
    assert result.run.router.name == "mlp_mod"
    assert result.run.router.plugin_sha256 is not None
    findings = [*found.audits[result.audit_key].audit, *result.audit]
    assert all(finding["verdict"] != "failed" for finding in findings)
    assert result.metrics["heldout_loss"] < result.metrics["unigram_loss"] - 0.5
    assert idle_layers([result]) == []
    table = (tmp_path / "my-results" / "quick" / "leaderboard.csv").read_text()
    assert "mlp_mod" in table.splitlines()[1]
