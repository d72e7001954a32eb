"""Sentences of a text."""

import re

#: White space after the end of a sentence and before a capital letter, or a blank line.
_BOUNDARY = re.compile(
    r"(?:(?<=[.?!])|(?<=[.?!][\"')\]])|(?<=[.?!][\"')\]]{2}))"
    r"(?<!e\.g\.)(?<!i\.e\.)\s+(?=[\"'(\[]*[A-Z])|\n\s*\n"
)
_WHOLE = re.compile(r"[\"'(\[]*[A-Z].*[.?!][\"')\]]*", re.DOTALL)


def split_sentences(text: str) -> list[str]:
    """The sentences, headings and labels of ``text`` in order, with single spaces between words."""
    pieces = (" ".join(piece.split()) for piece in _BOUNDARY.split(text))
    return [piece for piece in pieces if piece]


def is_sentence(piece: str, least: int, most: int) -> bool:
    """Return True if ``piece`` starts with a capital letter, ends with a full stop, ! or ?, and has
    ``least`` to ``most`` words."""
    return least <= piece.count(" ") + 1 <= most and _WHOLE.fullmatch(piece) is not None
