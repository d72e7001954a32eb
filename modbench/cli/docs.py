"""The command `modbench docs`. Imports no torch."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import modbench
from modbench.errors import UserError, known_names


def docs(
    topic: Annotated[Positional[str | None], arg(metavar="[TOPIC]", help_behavior_hint="")] = None, /
) -> int:
    """Print a page of the documentation; without a topic, the names of the pages.

    Example: modbench docs writing_a_router

    Args:
        topic: name of a page; a section, such as #1-causal in audit#1-causal, is ignored
    """
    pages = topics()
    if topic is None:
        print("modbench docs TOPIC prints one of these pages:", *pages, sep="\n  ")
        return 0
    name = topic.partition("#")[0]
    if name not in pages:
        raise UserError(f"docs: no page is called '{name}'; {known_names(name, pages)}")
    print(pages[name].read_text(encoding="utf-8"), end="")
    return 0


def topics() -> dict[str, Path]:
    """The pages by name: package data in a wheel, docs/ in a checkout."""
    package = Path(modbench.__file__).parent
    folder = package / "docs"
    if not folder.is_dir():
        folder = package.parent / "docs"
    return {page.stem: page for page in sorted(folder.glob("*.md"))}
