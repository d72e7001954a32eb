"""What the README says is what happens."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import modbench
from modbench.cli.main import main
from modbench.report.store import read_suite

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def table_of(text: str) -> str:
    """The first Markdown table of ``text``."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return "\n".join(rows)


def tutorial() -> str:
    (code,) = (code for code in blocks("python") if "@register_router" in code)
    return code


def test_the_table_is_that_of_the_committed_results() -> None:
    start, end = "<!-- results/quick/leaderboard.md -->", "<!-- end -->"
    shown = README[README.index(start) + len(start) : README.index(end)].strip()
    assert shown == table_of((ROOT / "results" / "quick" / "leaderboard.md").read_text())


def test_the_committed_results_are_of_all_six_schemes_and_of_committed_code() -> None:
    records = read_suite(ROOT / "results" / "quick").cells
    labels = sorted(record.cell["router"]["label"] for record in records)
    assert labels == [
        "expert_choice",
        "mod",
        "mode_integrated",
        "mode_staged",
        "token_choice",
        "vanilla",
    ]
    for record in records:
        assert record.status == "ok"
        assert record.code["dirty"] is False
        assert record.metrics["heldout_loss"] < record.metrics["unigram_loss"] - 0.5


def test_the_committed_report_follows_from_the_committed_records(tmp_path: Path) -> None:
    """The table to the byte; figures carry the version of the library that drew them."""
    from modbench.report.page import write_report

    source = ROOT / "results" / "quick"
    for shard in source.glob("*/*.jsonl"):  # records and timings
        copy = tmp_path / "quick" / shard.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(shard.read_bytes())
    written = write_report(tmp_path / "quick")
    assert sorted(path.name for path in written) == sorted(
        path.name for path in source.iterdir() if path.is_file() and path.name != ".lock"
    )
    for path in written:
        if path.suffix not in (".csv", ".md"):
            continue
        name = path.name
        assert (tmp_path / "quick" / name).read_bytes() == (source / name).read_bytes()


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
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


def test_the_lengths_of_the_examples_are_as_stated() -> None:
    (count, least, most) = re.findall(r"has (\w+) routers of (\d+) to (\d+) lines", README)[0]
    lengths = [len(file.read_text().splitlines()) for file in (ROOT / "examples").glob("*.py")]
    assert (len(lengths), min(lengths), max(lengths)) == (6, int(least), int(most))
    assert count == "six"


def test_the_counting_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (code for code in blocks("python") if "FlopCounter" in code)
    layer = torch.nn.Linear(4, 3)
    exec(code, {"model": layer, "inputs": torch.ones(2, 4, requires_grad=True)})
    counted, per_token, closed = capsys.readouterr().out.splitlines()
    assert counted.split()[:2] == [str(3 * 2 * 2 * 4 * 3)] * 2
    assert float(per_token) > 1e9
    assert int(closed) > 1e12


def test_the_flops_commands_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    # A process registers a name once.
    (tmp_path / "my_router.py").write_text(tutorial().replace('"mlp_mod"', '"mlp_mod_of_the_readme"'))
    golden = str(tmp_path / "my_router.flops.json")
    ran = []
    for block in blocks("sh"):
        for line in block.splitlines():
            for command in line.split(" && "):
                if command.startswith("modbench flops") and "mlp_mod" not in command:
                    words = [
                        str(tmp_path / word) if word.endswith((".json", ".py")) else word
                        for word in shlex.split(command)[1:]
                    ]
                    if "gate" in words:
                        assert main([*words, "--accept"]) == 0
                    assert main(words) == 0, command
                    ran.append(words[1])
    assert ran == ["--router", "--hf", "--router", "gate"]
    assert Path(golden).is_file()
    assert "108 FLOP counts equal" in capsys.readouterr().out  # 3 shapes, 4 phases, 9 conventions


@pytest.mark.full
@pytest.mark.network
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "mlp_mod.py").write_text(tutorial())
    commands = [line for block in blocks("sh") for line in block.splitlines() if "mlp_mod" in line]
    assert commands == [
        "modbench check mlp_mod.py",
        "modbench flops --router mlp_mod --plugin mlp_mod.py",
        "modbench run quick --plugin mlp_mod.py --only mlp_mod",
        "modbench run quick --plugin mlp_mod.py",
    ]
    said = []
    for command in commands[:3]:  # the fourth is the third with the six schemes that quick has
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
    found = read_suite(tmp_path / "results" / "quick")
    (record,), audits = found.cells, found.audits
    assert record.cell["router"]["name"] == "mlp_mod"
    assert record.cell["router"]["plugin_sha256"] is not None
    found = [*audits[record.audit_key].audit, *record.audit]
    assert all(finding["verdict"] != "failed" for finding in found)
    assert record.metrics["heldout_loss"] < record.metrics["unigram_loss"] - 0.5
    table = (tmp_path / "results" / "quick" / "leaderboard.csv").read_text()
    assert "mlp_mod" in table.splitlines()[1]


def test_how_far_the_curves_end_above_the_table_is_as_recorded() -> None:
    (said,) = re.findall(r"its ends lie ([\d.]+) to ([\d.]+) nats above", README)
    records = read_suite(ROOT / "results" / "quick").cells
    above = [record.curve[-1]["heldout_loss"] - record.metrics["heldout_loss"] for record in records]
    assert (f"{min(above):.2f}", f"{max(above):.2f}") == said
