"""`modbench docs`: pages and sections, and that messages name those that exist."""

import ast
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modbench
from modbench.cli.docs import sections, topics
from modbench.cli.main import main

PACKAGE = Path(modbench.__file__).parent


def test_without_a_topic_every_page_is_listed_with_its_first_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["docs"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "commands pick the command for a task. " in out
    assert "tasks of lm-eval" in out  # a link is its text
    for name in topics():
        assert f" {name} " in out


def test_a_page_is_printed_as_it_is_where_no_terminal_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "writing_a_router"]) == 0
    assert capsys.readouterr().out == topics()["writing_a_router"].read_text()


def test_a_section_ends_before_the_next_of_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "writing_a_router#causal"]) == 0
    out = capsys.readouterr().out
    assert out.startswith('## <a id="causal"></a>Causal rules')
    assert out.count("\n## ") == 0
    text = '# A\n\n## One\n\na\n\n### Two\n\n```sh\n# b\n```\n\n## Three\n\n<a id="x"></a>c\n'
    parts = sections(text)
    assert list(parts) == ["a", "one", "two", "three", "x"]
    assert parts["one"] == "## One\n\na\n\n### Two\n\n```sh\n# b\n```\n"
    assert parts["x"] == '<a id="x"></a>c\n'


@pytest.mark.parametrize(
    ("topic", "sentence"),
    [
        ("adit", "docs: no page is called 'adit'; did you mean 'audit'?"),
        ("audit#1-casual", "docs: page 'audit' has no section '1-casual'; did you mean '1-causal'?"),
    ],
)
def test_an_unknown_page_is_refused(
    topic: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["docs", topic]) == 2
    assert sentence in capsys.readouterr().err


def test_a_terminal_shows_formatted_text() -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "modbench", "docs", "commands"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PAGER": "cat", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=end, stderr=end, env=environment):
        os.close(end)
        shown = b""
        while True:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the process has ended
                break
    os.close(terminal)
    assert b"Commands" in shown
    assert b"# Commands" not in shown
    assert b"\x1b[" in shown


def test_pages_are_printed_without_torch() -> None:
    code = "import sys; from modbench.cli.docs import docs; docs('audit'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def shown_texts() -> list[tuple[Path, str]]:
    """Texts that users may see: all strings of the package except docstrings, and those of the command
    line with them, which are its help."""
    texts = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        hidden = set()
        if "cli" not in file.parts:
            bodies = (node.body for node in ast.walk(tree) if hasattr(node, "body"))
            firsts = (body[0] for body in bodies if isinstance(body, list) and body)
            hidden = {id(node.value) for node in firsts if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in hidden:
                texts.append((file, node.value))
    return texts


def test_messages_name_pages_that_an_installed_package_has() -> None:
    named = set()
    for file, text in shown_texts():
        assert not re.search(r"\bdocs/\w+\.md", text), file
        named |= set(re.findall(r"modbench docs (\w+)", text)) - {"TOPIC"}
    assert len(named) > 4
    assert named <= set(topics())
