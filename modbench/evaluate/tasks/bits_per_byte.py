"""The documents of ``modbench_bits_per_byte``: held-out text in pieces of up to 8,192 characters."""

from collections.abc import Iterator

from modbench.evaluate.tasks.heldout import HeldOut
from modbench.evaluate.tasks.quartets import Item

# These numbers decide the items: with another one, the version in the YAML file must be raised.
ITEMS = 160  # about a megabyte
_CHARACTERS = 8192  # more leave fewer, longer items; fewer give more tokens a short context


def build_items(text: HeldOut) -> list[Item]:
    """The pieces, ``{"source", "text"}``; of more than `ITEMS`, as many at equal intervals."""
    pieces = [
        {"source": source, "text": piece}
        for source, document in zip(text.sources, text.documents, strict=True)
        for piece in _pieces(document.strip())
    ]
    if len(pieces) <= ITEMS:
        return pieces
    return [pieces[index * len(pieces) // ITEMS] for index in range(ITEMS)]


def _pieces(text: str) -> Iterator[str]:
    """Cut ``text`` at white space, if there is some in the second half of a piece."""
    while len(text) > _CHARACTERS:
        cut = max(text.rfind(space, _CHARACTERS // 2, _CHARACTERS) for space in ("\n", " "))
        cut = cut if cut > 0 else _CHARACTERS
        yield text[:cut]
        text = text[cut:].lstrip()
    if text:
        yield text
