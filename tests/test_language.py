"""The language of pages, docstrings and messages: plain technical English."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Words that make a reader stop, and better ones.
AVOIDED = {
    "whom": "name the thing",
    "nobody": "no token, no process",
    "somebody": "name the thing",
    "stranger": "other sequences in the batch",
    "reckon(s|ed|ing)?": "compute, estimate, measure",
    "weigh(s|ed)": "measure the memory of",
    "mend(s|ed)?": "fix, repair",
    "anew": "again",
    "beside": "next to, in addition to",
    "asunder": "apart",
    "optimiser": "optimizer",
    "so many": "the number of",
    "lets? in": "selects",
    "passes by": "skips",
    "as it is written": "eager, without compilation",
    "plain twins?": "reference implementation",
    "first weights": "initial weights",
    "is no number": "is not a number",
    "puts on the clock": "measures",
}


def test_no_text_has_a_word_that_this_project_avoids() -> None:
    places = ("", "docs/", "modbench/**/", "examples/", "suites/")
    ends = ("md", "rst", "py", "toml")
    files = [file for place in places for end in ends for file in ROOT.glob(f"{place}*.{end}")]
    assert len(files) > 100
    for file in files:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", file.read_text(), flags=re.DOTALL)
        for word, better in AVOIDED.items():
            if found := re.search(rf"\b{word}\b", text, re.IGNORECASE):
                raise AssertionError(f"{file.relative_to(ROOT)}: '{found[0]}'; write: {better}")


#: What isn't prose: code, comments, tables, headings, quoted output; then list items begin a paragraph.
NOT_PROSE = (
    (r"```.*?```|<!--.*?-->|^\s*(\||#|>|:::|!\[|\*[^*]+\*$).*?$", "\n\n"),
    (r"`[^`\n]*`", "code"),
    (r"\]\([^)]*\)", "]"),
    (r"^\s*(?:[-*]|\d+\.) ", "\n\n"),
)
#: Numbers that are names: of probes, equations, papers and versions.
NAMES = r"(probes?|equations?|figures?|sections?|tables?|arXiv|appendix|step) \d[\d., or]*|\(?\d{4}[,)]"
NUMBER = r"(?<![\w.`/*^-])[-+]?\d[\d,.]*(?:e[-+]?\d+)?(?!\w|\*\*)"


def sentences(text: str) -> Iterator[str]:
    for pattern, by in NOT_PROSE:
        text = re.sub(pattern, by, text, flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", text):
        yield from re.split(
            r"(?<=[.?!:])[*)\"]*\s+(?=[\[(*\"]*(?:[A-Z0-9]|code))", " ".join(paragraph.split())
        )


def messages(source: str) -> Iterator[str]:
    """The texts that errors are raised with; a value is X."""

    def text_of(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(text_of(part) for part in node.values)
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        return node.value if is_text else "X"

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
            yield from map(text_of, node.args)


def test_a_sentence_has_at_most_30_words_and_two_numbers() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *ROOT.glob("docs/*.md"),
    ]
    texts = [(file, file.read_text()) for file in pages]
    files = ROOT.glob("modbench/**/*.py")
    raised = [(file, message) for file in files for message in messages(file.read_text())]
    assert len(raised) > 500
    wrong = []
    for file, text in texts + raised:
        for sentence in sentences(text):
            words = re.findall(r"\S*\w\S*", sentence)
            numbers = re.findall(NUMBER, re.sub(NAMES, "", sentence, flags=re.IGNORECASE))
            if len(words) > 30 or len(numbers) > 2:
                wrong.append(
                    f"{file.relative_to(ROOT)}: {len(words)} words, {len(numbers)} numbers: {sentence}"
                )
    assert not wrong, "\n".join(wrong)
