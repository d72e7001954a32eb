"""Tokenizers: raw bytes, or byte-pair encoding trained on the training text. Both are lossless.
Or those of a file ``tokenizer.json`` of the library ``tokenizers``, which byte-level BPE has as GPT-2
and Llama 3 use it.

Token ids: 0 to 255 are the bytes, then come the results of merges in the order learnt, and the last id
is end of text. The merges determine a tokenizer, and only they are stored: a file written with one
version of ``tokenizers`` reads the same with another.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from modbench.data.config import MOST_IDS, DataConfig
from modbench.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer as Engine
#: Two token ids that become one token when adjacent.
Merge = tuple[int, int]
#: Texts tokenized at a time, so that lists of ids do not fill the memory.
_BATCH = 1000


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

    @cached_property
    def _engine(self) -> "Engine | None":
        return _engine(self.merges, self.pieces[:-1]) if self.merges else None

    def stored(self) -> dict[str, object]:
        """Return the tokenizer as JSON; see `modbench.data.tokenizer.tokenizer_of`."""
        merges: dict[str, object] = {"merges": [list(merge) for merge in self.merges]}
        return merges if self.text is None else {**merges, "tokenizer": self.text}

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without end of text."""
        if self._engine is None:
            return list(text.encode("utf-8"))
        return cast(list[int], self._engine.encode(text, add_special_tokens=False).ids)

    def stream(self, texts: Sequence[str]) -> "np.ndarray":
        """The ids (uint16) of the texts one after another, each followed by end of text."""
        import numpy as np  # not where a suite is only read

        ids_N = [np.zeros(0, dtype="<u2")]
        for at in range(0, len(texts), _BATCH):
            batch = list(texts[at : at + _BATCH])
            if self._engine is None:
                each = [self.encode(text) for text in batch]
            else:  # on all cores
                encoded = self._engine.encode_batch_fast(batch, add_special_tokens=False)
                each = [encoding.ids for encoding in encoded]
            ids_N += [np.array([*ids, self.end_of_text], dtype="<u2") for ids in each]
        return np.concatenate(ids_N)

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


#: Names of the token that ends a text, as public models have them.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
#: A tokenizer must give this text back: letters, digits, spaces, line breaks, and characters of 2, 3
#: and 4 bytes.
_SAMPLE = "One line,  2 words\n\tna\u00efve \u4e16\u754c \U0001f600 the end"


class FileTokenizer(Tokenizer):
    """The tokenizer of ``text``, the content of a tokenizer.json. Its special tokens are never read from
    text. End of text is the first of `ENDS` that it has, or one more id. Raises UserError: it is
    damaged, is no byte-level BPE, or has too many ids; the message starts with ``what``."""

    def __init__(self, text: str, what: str) -> None:
        engine = _engine_of(text, what)
        ids, of_char = engine.get_vocab(with_added_tokens=True), byte_of_character()
        pieces = [b""] * (max(ids.values(), default=-1) + 1)
        for token, index in ids.items():
            pieces[index] = bytes(of_char.get(char, 0) for char in token)
        for index, added in engine.get_added_tokens_decoder().items():
            pieces[index] = b"" if added.special else added.content.encode()
        ends = [name for name in ENDS if name in ids]
        if not ends:
            pieces.append(b"")
        self.merges = ()
        self.text = text
        self.pieces = tuple(pieces)
        self.end_token = ends[0] if ends else ENDS[0]
        self.end_of_text = ids[ends[0]] if ends else len(pieces) - 1
        self.vocabulary = len(pieces)
        self._engine, self._what = engine, what
        known = {piece for piece in pieces if len(piece) == 1}
        if len(known) < 256 or self.decode(self.encode(_SAMPLE)) != _SAMPLE:
            raise UserError(
                f"{what} does not give every text back; modbench reads byte-level BPE tokenizers with a "
                "token for each byte, such as GPT-2's"
            )
        if self.vocabulary > MOST_IDS:
            raise UserError(
                f"{what} has {self.vocabulary} ids with end of text; {MOST_IDS} or fewer can be stored"
            )

    def engine(self) -> "Engine":
        return _engine_of(str(self.text), self._what)


def _engine_of(text: str, what: str) -> "Engine":
    from tokenizers import Tokenizer as Engine

    try:
        engine = Engine.from_str(text)
    except Exception as error:  # the library raises no other class
        raise UserError(f"{what} is no tokenizer of the library tokenizers ({error})") from None
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = True
    return engine


def read_tokenizer(config: DataConfig) -> FileTokenizer:
    """The tokenizer in the file that ``config`` names. Raises UserError: it can't be read, has another
    sha256 than ``config`` states, or see `FileTokenizer`."""
    what = f"data tokenizer '{config.tokenizer}'"
    try:
        content = Path(config.tokenizer).read_bytes()
        text = content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{what} is not UTF-8; give a tokenizer.json") from None
    except OSError as error:
        raise UserError(
            f"{what} can't be read ({error.strerror}); give the path of a tokenizer.json"
        ) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if config.tokenizer_sha256 not in (None, sha256):
        raise UserError(
            f"{what} has sha256 {sha256[:12]}, not {str(config.tokenizer_sha256)[:12]} as stated; "
            "restore the file, or change data tokenizer_sha256"
        )
    return FileTokenizer(text, what)


def with_tokenizer(config: DataConfig, vocabulary: int | None = None) -> DataConfig:
    """``config`` with the vocabulary and the hash of its tokenizer file, if it names one.
    ``vocabulary``: as the user stated it. Raises UserError: see `read_tokenizer`; or the file has
    another vocabulary."""
    if not config.has_tokenizer_file:
        return config
    tokenizer = read_tokenizer(config)
    if vocabulary not in (None, tokenizer.vocabulary):
        raise UserError(
            f"data vocabulary is {vocabulary}, but tokenizer '{config.tokenizer}' has "
            f"{tokenizer.vocabulary} ids with end of text; leave it out, the file determines it"
        )
    sha256 = hashlib.sha256(str(tokenizer.text).encode()).hexdigest()
    return replace(config, vocabulary=tokenizer.vocabulary, tokenizer_sha256=sha256)


def tokenizer_for(config: DataConfig, train: Iterable[str]) -> Tokenizer:
    """The tokenizer that ``config`` asks for; a bpe is trained on the texts ``train``. Raises UserError:
    see `read_tokenizer` and `train_bpe`."""
    if config.has_tokenizer_file:
        return read_tokenizer(config)
    return Tokenizer() if config.tokenizer == "bytes" else train_bpe(train, config.vocabulary)


def tokenizer_of(stored: Mapping[str, Any], what: str) -> Tokenizer:
    """The tokenizer of `Tokenizer.stored`; ``what``: its name in messages."""
    if (text := stored.get("tokenizer")) is not None:
        return FileTokenizer(text, what)
    return Tokenizer([(int(left), int(right)) for left, right in stored["merges"]])
