"""The documents of ``modbench_bits_per_byte``: held-out text in pieces of up to 8,192 characters."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from modbench.data.config import DataConfig
from modbench.evaluate.tasks.heldout import enough, read_heldout
from modbench.evaluate.tasks.quartets import Item

# These numbers decide the items: with another one, the version in the YAML file must be raised.
ITEMS = 160  # about a megabyte
_CHARACTERS = 8192  # more leave fewer, longer items; fewer give more tokens a short context


@lru_cache(maxsize=4)
def items(config: DataConfig) -> tuple[Item, ...]:
    """The pieces, ``{"source", "text"}``. Raises UserError: the corpus is missing or altered."""
    text = read_heldout(config)
    built = tuple(build_items(text.documents, sources=text.sources))
    enough("modbench_bits_per_byte", config, built, least=1)
    return built


def build_items(heldout: Sequence[str], *, sources: str | None = None, count: int = ITEMS) -> list[Item]:
    """Cut documents into pieces; of more than ``count``, take ``count`` at equal intervals."""
    pieces = [
        {"source": source, "text": piece}
        for source, text in zip(sources or "-" * len(heldout), heldout, strict=True)
        for piece in _pieces(text.strip())
    ]
    if len(pieces) <= count:
        return pieces
    return [pieces[index * len(pieces) // count] for index in range(count)]


def _pieces(text: str) -> Iterator[str]:
    """Cut ``text`` at white space, if there is some in the second half of a piece."""
    while len(text) > _CHARACTERS:
        cut = max(text.rfind(space, _CHARACTERS // 2, _CHARACTERS) for space in ("\n", " "))
        cut = cut if cut > 0 else _CHARACTERS
        yield text[:cut]
        text = text[cut:].lstrip()
    if text:
        yield text
