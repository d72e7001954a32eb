"""What the guide to writing a router says is what happens."""

import re
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from modbench.cli.main import main

DOCS = Path(__file__).parent.parent / "docs"
GUIDE = (DOCS / "writing_a_router.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def patched(text: str, diff: str) -> str:
    """``text`` with each hunk's old lines replaced by its new ones."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] or "\n" for line in lines if line[0] in " -")
        new = "".join(line[1:] or "\n" for line in lines if line[0] in " +")
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def verdicts(said: str) -> list[tuple[str, str, str]]:
    """(number, name, verdict) of each probe's line; figures differ from machine to machine."""
    return re.findall(r"^ *(\d+)  (\S.*?) {2,}(passed|FAILED|not asked) +", said, flags=re.MULTILINE)


def test_the_first_version_fails_and_the_second_passes_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, _ = blocks("python")
    (diff,) = blocks("diff")
    (command, *_) = [line for line in "".join(blocks("sh")).splitlines() if "audit" in line]
    wrong, right = blocks("text")
    assert len(verdicts(wrong)) == len(verdicts(right)) == 11
    # One name to each file: a process loads a plugin once.
    for number, (source, printed) in enumerate(((first, wrong), (patched(first, diff), right))):
        name = f"top_share_{number}"
        Path(f"{name}.py").write_text(source.replace('"top_share"', f'"{name}"'))
        words = command.replace("top_share", name).split()[1:]
        assert main(words) == (1 if "FAILED" in printed else 0)
        assert verdicts(capsys.readouterr().out) == verdicts(printed)
    assert [number for number, _, verdict in verdicts(wrong) if verdict == "FAILED"] == ["1", "3"]


def test_the_experts_of_the_guide_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, source = blocks("python")
    Path("in_turn.py").write_text(source)
    assert main(["audit", "in_turn", "--plugin", "in_turn.py", "--layers", "2", "--sequence", "64"]) == 0
    said = {int(number): verdict for number, _, verdict in verdicts(capsys.readouterr().out)}
    assert {number for number, verdict in said.items() if verdict == "passed"} == {1, 2, 3, 4, 9, 10}


def test_the_routers_of_the_guide_refuse_what_is_out_of_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = blocks("python")[0].replace('"top_share"', '"top_share_checked"')
    Path("top_share_checked.py").write_text(source)
    for capacity, words in (
        ("0", "capacity is 0; it must lie in (0, 1]"),
        ("1.5", "capacity is 1.5; it must lie in (0, 1]"),
        ("true", "capacity is True; it should be a valid number"),
    ):
        command = "audit top_share_checked --plugin top_share_checked.py --option"
        assert main([*command.split(), f"capacity={capacity}"]) == 2
        assert words in capsys.readouterr().err


def test_every_link_of_every_page_leads_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)


def test_the_defaults_of_the_time_table_are_what_the_page_says() -> None:
    from modbench.measure.time_config import TimeConfig

    (table,) = re.findall(r"```toml\n(.*?)```", (DOCS / "timing.md").read_text(), flags=re.DOTALL)
    said = tomllib.loads(table)["time"]
    meant = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(TimeConfig()).items()}
    assert said == meant
