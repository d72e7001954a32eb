"""Tokenizers: raw bytes, or byte-pair encoding trained on the training text. Both are lossless. For
those of a file see `modbench.data.tokenizer_file`.

Token ids: 0 to 255 are the bytes, then come the results of merges in the order learnt, and the last id
is end of text. The merges determine a tokenizer, and only they are stored: a file written with one
version of ``tokenizers`` reads the same with another.
"""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from modbench.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer as Engine

#: Two token ids that become one token when adjacent.
Merge = tuple[int, int]


class Tokenizer:
    """Text to token ids and back.

    ``Tokenizer()`` has no merges: one token per byte of UTF-8. Raise a `ValueError` if a merge names an
    unknown token."""

    def __init__(self, merges: Sequence[Merge] = ()) -> None:
        pieces = [bytes([value]) for value in range(256)]
        known = set(pieces)
        for left, right in merges:
            if not (0 <= left < len(pieces) and 0 <= right < len(pieces)):
                raise ValueError(f"merge ({left}, {right}) names a token past the {len(pieces)} known")
            merged = pieces[left] + pieces[right]
            if merged not in known:
                known.add(merged)
                pieces.append(merged)
        self.merges: tuple[Merge, ...] = tuple((left, right) for left, right in merges)
        self.text: str | None = None  #: the content of its file, if it has one
        self.end_token = "<|endoftext|>"  #: name of end of text, for other libraries
        #: the bytes of each id; none for end of text
        self.pieces: tuple[bytes, ...] = (*pieces, b"")
        self.end_of_text = len(pieces)
        self.vocabulary = len(pieces) + 1
        self._engine = _engine(self.merges, pieces) if merges else None

    def stored(self) -> dict[str, object]:
        """Return the tokenizer as JSON; see `modbench.data.tokenizer_file.tokenizer_of`."""
        merges: dict[str, object] = {"merges": [list(merge) for merge in self.merges]}
        return merges if self.text is None else {**merges, "tokenizer": self.text}

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without end of text."""
        if self._engine is None:
            return list(text.encode("utf-8"))
        return cast(list[int], self._engine.encode(text, add_special_tokens=False).ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text: :meth:`encode` of each, faster."""
        if self._engine is None:
            return [self.encode(text) for text in texts]
        encoded = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def stream(self, texts: Sequence[str]) -> "np.ndarray":
        """The ids (uint16) of the texts one after another, each followed by end of text."""
        import numpy as np  # not where a suite is only read

        ids = [np.array([*ids, self.end_of_text], dtype="<u2") for ids in self.encode_all(texts)]
        return np.concatenate(ids) if ids else np.zeros(0, dtype="<u2")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; end of text adds nothing, bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.pieces[index] for index in ids).decode("utf-8", errors="replace")

    def engine(self) -> "Engine":
        """A new tokenizer of the library ``tokenizers`` with the same ids, without end of text."""
        return _engine(self.merges, self.pieces[:-1])


def train_bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn a byte-pair encoding of ``vocabulary`` ids (with bytes and end of text) on ``texts``. Raise
    a `UserError` if the texts have too few distinct pairs for that many ids."""
    from tokenizers import pre_tokenizers, trainers

    engine = _engine()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    engine.train_from_iterator(texts, trainer)
    of_char = byte_of_character()
    ids = {bytes([value]): value for value in range(256)}
    merges = []
    for pair in json.loads(engine.to_str())["model"]["merges"]:
        left, right = (bytes(of_char[char] for char in piece) for piece in pair)
        merges.append((ids[left], ids[right]))
        ids.setdefault(left + right, len(ids))
    tokenizer = Tokenizer(merges)
    if tokenizer.vocabulary != vocabulary:
        raise UserError(
            f"data vocabulary is {vocabulary}, but the training text has pairs for only "
            f"{tokenizer.vocabulary} ids; set vocabulary = {tokenizer.vocabulary}, give more text, "
            "or set tokenizer = 'bytes'"
        )
    return tokenizer


def _engine(merges: Sequence[Merge] = (), pieces: Sequence[bytes] = ()) -> "Engine":
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, pre_tokenizers

    char_of = {value: char for char, value in byte_of_character().items()}
    written = ["".join(char_of[value] for value in piece) for piece in pieces]
    vocab = {piece: index for index, piece in enumerate(written)}
    engine = Engine(models.BPE(vocab, [(written[left], written[right]) for left, right in merges]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return engine


def byte_of_character() -> dict[str, int]:
    """GPT-2's table, as ``tokenizers`` uses it: the byte of each printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {
        chr(256 + number): value for number, value in enumerate(others)
    }
