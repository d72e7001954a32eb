"""Tokenizers from a file ``tokenizer.json`` of the library ``tokenizers``, which byte-level BPE has as
GPT-2 and Llama 3 use it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modbench.data.config import MOST_IDS, DataConfig
from modbench.data.tokenizer import Tokenizer, byte_of_character, train_bpe
from modbench.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

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
        engine = _engine(text, what)
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
        return _engine(str(self.text), self._what)


def _engine(text: str, what: str) -> "Engine":
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
