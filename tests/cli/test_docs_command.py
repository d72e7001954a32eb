"""`modbench docs`: pages, and that messages name those that exist."""

import ast
import re
from pathlib import Path

import pytest

import modbench
from modbench.cli.docs import topics
from modbench.cli.main import main

PACKAGE = Path(modbench.__file__).parent


def test_without_a_topic_every_page_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs"]) == 0
    assert set(topics()) <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("topic", ["writing_a_router", "writing_a_router#causal"])
def test_a_page_is_printed_whatever_its_section(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", topic]) == 0
    assert capsys.readouterr().out == topics()["writing_a_router"].read_text()


def test_an_unknown_page_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "adit"]) == 2
    assert "did you mean 'audit'?" in capsys.readouterr().err


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
