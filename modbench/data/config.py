"""The [data] table of a suite: training text and tokenizer."""

from dataclasses import dataclass, fields
from typing import Literal

from modbench.errors import UserError, known_names

Source = Literal["pypi-en-v1", "text", "huggingface"]
#: Most ids of a tokenizer; token files have 16 bits per token.
MOST_IDS = 65_536

#: Sources that read a field; for other sources it must keep its default.
_FIELDS_OF = {
    **dict.fromkeys(("name", "subset", "split", "revision", "documents"), ("huggingface",)),
    **dict.fromkeys(("heldout", "text_field"), ("text", "huggingface")),
    "path": ("text",),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A corpus and its tokenizer. Raise a `UserError` if a field is out of range, missing, or of another
    source."""

    source: Source = "pypi-en-v1"  #: the built-in corpus, a local file, or a Hugging Face data set
    #: bpe: trained on the corpus; bytes: one id per byte; or the path of a tokenizer.json, relative to
    #: the working directory
    tokenizer: str = "bpe"
    #: ids of the bpe, bytes and end of text included; ``bytes`` always has 257, a file as many as it has
    vocabulary: int = 2048
    #: of the tokenizer's file, which must have it; unset: filled in
    tokenizer_sha256: str | None = None
    #: text: a .txt file, a .jsonl file with one document per line, or a folder of .jsonl or .parquet
    #: files, of .jsonl.gz files, or of .txt or .txt.gz files with one document each, which is streamed;
    #: relative to the working directory
    path: str | None = None
    name: str | None = None  #: huggingface: the data set's name, or a local folder
    subset: str | None = None  #: huggingface: its configuration, such as ``sample-10BT``
    split: str = "train"  #: huggingface: the split to read; the held-out part is cut from it
    revision: str | None = None  #: huggingface: the commit to read
    text_field: str = "text"  #: .jsonl and huggingface: the field that holds a document's text
    documents: int = 20_000  #: huggingface: number of documents to stream, from the start
    heldout: float = 0.05  #: text and huggingface: fraction of documents held out (.txt: its tail)

    def __post_init__(self) -> None:
        for field in fields(self):
            owners = _FIELDS_OF.get(field.name, (self.source,))
            value = getattr(self, field.name)
            if self.source not in owners and value != field.default:
                raise UserError(
                    f"data {field.name} is {value!r}, but source '{self.source}' has no such setting; "
                    f"remove it, or set source = '{owners[0]}'"
                )
        if self.source == "text" and not self.path:
            raise UserError(
                "data path is missing; source 'text' needs the path of a .txt or .jsonl file or of a "
                "folder"
            )
        if self.source == "huggingface" and not self.name:
            raise UserError("data name is missing; source 'huggingface' needs the name of a data set")
        if not 0 < self.heldout < 1:
            raise UserError(f"data heldout is {self.heldout}; it must lie between 0 and 1")
        if self.tokenizer not in ("bpe", "bytes") and not self.has_tokenizer_file:
            known = known_names(self.tokenizer, ("bpe", "bytes"))
            raise UserError(
                f"data tokenizer is {self.tokenizer!r}; {known}, or the path of a tokenizer.json"
            )
        if self.tokenizer_sha256 is not None and not self.has_tokenizer_file:
            raise UserError(
                f"data tokenizer_sha256 is set, but tokenizer {self.tokenizer!r} is no file; remove it"
            )
        if self.tokenizer == "bytes":
            if self.vocabulary not in (257, DataConfig.vocabulary):  # the default is replaced
                raise UserError(
                    f"data vocabulary is {self.vocabulary}, but tokenizer 'bytes' always has 257 ids; "
                    "remove it, or set tokenizer = 'bpe'"
                )
            object.__setattr__(self, "vocabulary", 257)
        elif not 258 <= self.vocabulary <= MOST_IDS and not self.has_tokenizer_file:
            raise UserError(
                f"data vocabulary is {self.vocabulary}; "
                f"a bpe has from 258 (bytes, one merge, end of text) to {MOST_IDS} ids"
            )

    @property
    def has_tokenizer_file(self) -> bool:
        """True if ``tokenizer`` is the path of a file."""
        return self.tokenizer.endswith(".json")

    def settings(self) -> dict[str, object]:
        """The fields that this source reads, on which alone its tokens depend."""
        settings = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if self.source in _FIELDS_OF.get(field.name, (self.source,))
        }
        if not self.has_tokenizer_file:
            del settings["tokenizer_sha256"]  # hashes of other tokenizers' tokens have no such field
        return settings
