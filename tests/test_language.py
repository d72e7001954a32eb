"""The language of pages, docstrings and messages: plain technical English."""

import re
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
