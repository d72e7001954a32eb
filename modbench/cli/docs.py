"""The command `modbench docs`. Imports no torch."""

import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import modbench
from modbench.errors import UserError, known_names

#: What each page's first sentence starts with; the list of topics leaves it out.
_AFTER = "After reading this page you can "


def docs(
    topic: Annotated[
        Positional[str | None], arg(metavar="[TOPIC[#SECTION]]", help_behavior_hint="")
    ] = None,
    /,
) -> int:
    """Print a page of the documentation, or a section of it; without a topic, the list of pages.

    Example: modbench docs writing_a_router

    Args:
        topic: name of a page, and of a section as messages give it, such as audit#1-causal
    """
    pages = topics()
    if topic is None:
        print("modbench docs TOPIC prints one of these pages. After reading it you can:\n")
        for name, page in pages.items():
            text = textwrap.fill(_first_sentence(page.read_text(encoding="utf-8")), 98)
            print(f"  {name}\n{textwrap.indent(text, '      ')}")
        return 0
    name, _, anchor = topic.partition("#")
    if name not in pages:
        raise UserError(f"docs: no page is called '{name}'; {known_names(name, pages)}")
    text = pages[name].read_text(encoding="utf-8")
    if anchor:
        parts = sections(text)
        if anchor not in parts:
            raise UserError(
                f"docs: page '{name}' has no section '{anchor}'; {known_names(anchor, parts)}"
            )
        text = parts[anchor]
    _show(text)
    return 0


def topics() -> dict[str, Path]:
    """The pages by name: package data in a wheel, docs/ in a checkout."""
    package = Path(modbench.__file__).parent
    folder = package / "docs"
    if not folder.is_dir():
        folder = package.parent / "docs"
    return {page.stem: page for page in sorted(folder.glob("*.md"))}


def sections(text: str) -> dict[str, str]:
    """The sections of the page ``text`` by anchor: from a heading, or the paragraph of an ``<a id>``, up
    to the next heading of its level or above."""
    lines = text.splitlines()
    levels, code = list[int](), False  #: of the heading in each line; 0: none
    for line in lines:
        code ^= line.startswith("```")
        levels.append(0 if code else len(line) - len(line.lstrip("#")))
    parts, level = dict[str, str](), 1
    for number, line in enumerate(lines):
        level = levels[number] or level
        anchors = re.findall(r'<a id="([\w-]+)"></a>', line)
        if levels[number]:
            heading = re.sub(r"<[^>]*>", "", line).lstrip("#").strip().lower()
            anchors.append(re.sub(r"[^\w -]", "", heading).replace(" ", "-"))
        ends = (later for later in range(number + 1, len(lines)) if 0 < levels[later] <= level)
        end = next(ends, len(lines)) if anchors else number
        parts |= dict.fromkeys(anchors, "\n".join(lines[number:end]).rstrip() + "\n")
    return parts


def _first_sentence(text: str) -> str:
    """The first sentence below the title, without links."""
    paragraph = " ".join(text.split("\n\n")[1].split()).removeprefix(_AFTER)
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph, maxsplit=1)[0]
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", sentence)


def _show(text: str) -> None:
    """Print Markdown: formatted and page by page on a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "-FRX")  # show colours; a short text needs no key
    console = Console()
    with console.pager(styles=True):
        console.print(Markdown(re.sub(r"<!--.*?-->|<a [^>]*></a>", "", text)))
