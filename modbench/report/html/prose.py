"""Markdown of a page as HTML: paragraphs and cells. Raw HTML and links in it stay text."""

from functools import cache

from markdown_it import MarkdownIt
from markupsafe import Markup


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False})
    # Texts of a page have no link, and a text from a record must not make one.
    return parser.disable(["link", "image", "autolink", "html_block", "html_inline", "reference"])


def block(text: str) -> Markup:
    """Paragraphs of ``text``."""
    return Markup(_parser().render(text).strip())


def inline(text: str) -> Markup:
    """``text`` without a paragraph around it."""
    return Markup(_parser().renderInline(text))
