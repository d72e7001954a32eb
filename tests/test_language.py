"""The language of docstrings, comments, messages, test names and pages: plain technical English.

The words that this project avoids are listed here with better ones.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Words in prose that make a reader stop, and better ones.
AVOIDED = {
    "who": "name the thing: token, process, user of the API",
    "whom": "name the thing",
    "whoever": "name the thing",
    "nobody": "no token, no process",
    "somebody": "name the thing",
    "stranger": "other sequences in the batch",
    "strangers": "other sequences in the batch",
    "reckon": "compute, estimate, measure",
    "reckons": "computes, estimates, measures",
    "reckoned": "computed, estimated, measured",
    "reckoning": "computation, estimate",
    "weighs": "measures the memory of",
    "weighed": "measured the memory of",
    "promise": "state; nominal",
    "promises": "states; nominal",
    "promised": "stated; nominal",
    "mend": "fix, repair",
    "mends": "fixes",
    "mended": "fixed",
    "anew": "again",
    "beside": "next to, in addition to",
    "elsewise": "otherwise",
    "asunder": "apart",
    "optimiser": "optimizer",
    "so many": "the number of",
    "of which": "a new sentence",
    "of whose": "a new sentence",
    "lets in": "selects",
    "let in": "selected",
    "lets nobody": "selects no token",
    "passes by": "skips",
    "as it is written": "eager, without compilation",
    "as written": "eager, without compilation",
    "plain twin": "reference implementation",
    "plain twins": "reference implementations",
    "first weights": "initial weights",
    "host decides": "data-dependent shapes",
    "is no number": "is not a number",
    "puts on the clock": "measures",
}
#: Openings of docstrings; the first line says what a thing is or does.
OPENINGS = ("Whether", "What", "Who", "Whom", "Whose", "Of how", "Of which", "How")
#: Files and words that are not prose of this project.
ALLOWED = {
    "tests/test_language.py": set(AVOIDED),  # lists them
    "tests/data/test_corpus.py": {"nobody"},  # the name of a data set
    "tests/evaluate/test_cloze_items.py": {"who"},  # text of a made-up corpus
    "tests/train/test_out_of_memory.py": {"of which"},  # PyTorch's message
}
_PATTERN = re.compile(
    rf"\b({'|'.join(sorted(map(re.escape, AVOIDED), key=len, reverse=True))})\b", re.IGNORECASE
)


def files(*patterns: str) -> list[Path]:
    """Files of the project that match, without environments and results."""
    found = [file for pattern in patterns for file in ROOT.glob(pattern)]
    return sorted(
        file for file in found if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
    )


PYTHON = files(
    "modbench/**/*.py", "tests/**/*.py", "tools/**/*.py", "examples/*.py", "docs/*.py", "noxfile.py"
)
PAGES = files("*.md", "docs/*.md", "docs/*.rst", "modbench/**/*.md")
OTHER = files("suites/*.toml", "pyproject.toml", "*.cff")


def in_python(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each comment, string with two words or more, and test name in ``source``."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, _without_code(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")


def in_page(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of ``text`` outside blocks of code."""
    code = False
    for number, line in enumerate(text.splitlines(), start=1):
        code ^= line.startswith("```")
        if not code:
            yield number, _without_code(line)


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "`", text)


def avoided_in(file: Path) -> list[str]:
    """The avoided words in the prose of ``file``, with their lines."""
    text, name = file.read_text(), file.relative_to(ROOT).as_posix()
    prose = in_python(text) if file.suffix == ".py" else in_page(text)
    return [
        f"{name}:{line}: '{word}'; write: {AVOIDED[' '.join(word.lower().split())]}"
        for line, said in prose
        for word in _PATTERN.findall(" ".join(said.split()))
        if word.lower() not in ALLOWED.get(name, ())
    ]


def openings_in(file: Path) -> list[str]:
    """Docstrings of ``file`` that open with a word of `OPENINGS`."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = ast.get_docstring(node) or ""
            if said.startswith(tuple(f"{word} " for word in OPENINGS)):
                name = getattr(node, "name", "module")
                found.append(f"{file.relative_to(ROOT)}: {name}: {said.splitlines()[0]}")
    return found


def test_no_prose_has_a_word_that_this_project_avoids() -> None:
    found = [said for file in (*PYTHON, *PAGES, *OTHER) for said in avoided_in(file)]
    assert not found, "\n".join(found)


def test_no_docstring_opens_with_a_question() -> None:
    found = [said for file in PYTHON for said in openings_in(file)]
    assert not found, "\n".join(found)


def test_every_exception_is_needed(monkeypatch) -> None:
    monkeypatch.setattr("test_language.ALLOWED", {})
    for name, words in ALLOWED.items():
        said = "\n".join(avoided_in(ROOT / name)).lower()
        assert all(f"'{word}'" in said for word in words), name


def test_prose_is_found_in_docstrings_comments_messages_and_test_names(tmp_path: Path) -> None:
    source = (
        '"""Says who."""\nx = "so many words"  # for nobody\n'
        "y = 'who'\nz = 'run `who` now'\ndef test_who_is_there(): pass\n"
    )
    found = [word for _, said in in_python(source) for word in _PATTERN.findall(said)]
    assert sorted(word.lower() for word in found) == ["nobody", "so many", "who", "who"]


def test_code_of_a_page_is_not_prose() -> None:
    page = "who\n```sh\nwho\n```\n`who` nobody\n"
    assert [word for _, said in in_page(page) for word in _PATTERN.findall(said)] == ["who", "nobody"]
