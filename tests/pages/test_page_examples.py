"""Every Python and shell block of a page is run by a test, or is marked with the reason why it is not;
every command line of a page is one that the program accepts."""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from modbench.cli.main import main

ROOT = Path(__file__).parents[2]
#: The test file that runs the blocks of a page in a language, except those marked as not run.
RUN_BY = {
    ("clusters", "sh"): "sweep/test_machines.py",
    ("counting", "python"): "test_docs.py",
    ("counting", "sh"): "test_docs.py",
    ("evaluation", "python"): "cli/test_eval.py",
    ("evaluation", "sh"): "cli/test_eval.py",
    ("models", "console"): "test_models_page.py",
    ("models", "python"): "test_models_page.py",
    ("checking_a_result", "python"): "report/test_frames.py",
    ("hugging_face", "python"): "hf/test_retrofit_page.py",
    ("start", "python"): "pages/test_start.py",
    ("start", "sh"): "pages/test_start.py",
    ("writing_a_router", "python"): "test_docs.py",
    ("your_block", "python"): "routing/test_module_router.py",
}
_BLOCK = re.compile(
    r"^(<!-- not run: [^\n]+ -->\n)?```(python|sh|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


def blocks() -> list[tuple[str, str, bool, str]]:
    """Page, language, True if marked as not run, and text of each block."""
    return [
        (page.stem, language, bool(marked), text)
        for page in sorted((ROOT / "docs").glob("*.md"))
        for marked, language, text in _BLOCK.findall(page.read_text())
    ]


def command_lines() -> list[str]:
    lines = [
        line
        for _, language, _, text in blocks()
        if language != "python"
        for line in re.sub(r" *\\\n *", " ", text).splitlines()
    ]
    return sorted({line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?modbench ", line)})


def test_every_block_is_run_or_marked_with_a_reason() -> None:
    unmarked = {(page, language) for page, language, marked, _ in blocks() if not marked}
    assert unmarked == set(RUN_BY)


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_of_a_page_is_accepted(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from modbench.cli import flops
    from modbench.cli.main import function_of

    parsed = []

    def not_run(function: Any) -> Any:
        @functools.wraps(function)
        def record(*values: Any, **options: Any) -> int:
            parsed.append(function)
            return 0

        return record

    monkeypatch.setattr("modbench.cli.main.function_of", lambda name: not_run(function_of(name)))
    monkeypatch.setattr(flops, "gate", not_run(flops.gate))
    assert main(shlex.split(line, comments=True)[1:]) == 0
    assert len(parsed) == 1
