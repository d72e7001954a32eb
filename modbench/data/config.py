"""Which text a run is trained on, and how it becomes tokens: the [data] table of a suite."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from modbench.errors import UserError, known_names

Source = Literal["pypi-en-v1", "text", "huggingface"]
TokenizerKind = Literal["bpe", "bytes"]

#: The fields that one source alone reads; set for another source they would be a misunderstanding.
_FIELDS_OF = {
    "path": ("text",),
    "heldout": ("text", "huggingface"),
    "text_field": ("text", "huggingface"),
    "name": ("huggingface",),
    "subset": ("huggingface",),
    "split": ("huggingface",),
    "revision": ("huggingface",),
    "documents": ("huggingface",),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A corpus and its tokenizer.

    Raises:
        UserError: a field is unknown, out of range, missing, or of another source.
    """

    source: Source = "pypi-en-v1"
    tokenizer: TokenizerKind = "bpe"
    vocabulary: int = 2048  #: ids of the bpe, bytes and end of text included; ``bytes`` always has 257
    #: text: a .txt file, or a .jsonl file with one document per line; from the working directory on
    path: str | None = None
    name: str | None = None  #: huggingface: the data set's name, or a local folder
    subset: str | None = None  #: huggingface: its configuration, such as ``sample-10BT``
    split: str = "train"  #: huggingface: which of its splits is read; the held-out part is cut from it
    revision: str | None = None  #: huggingface: the commit to read, for a data set that may change
    text_field: str = "text"  #: .jsonl and huggingface: the field that holds a document's text
    documents: int = 20_000  #: huggingface: how many documents are streamed, from the start
    heldout: float = 0.05  #: text and huggingface: share of the documents held out (of a .txt: its tail)

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise UserError(
                f"data source '{self.source}' is not known; {known_names(self.source, get_args(Source))}"
            )
        if self.tokenizer not in get_args(TokenizerKind):
            raise UserError(
                f"data tokenizer '{self.tokenizer}' is not known; "
                f"{known_names(self.tokenizer, get_args(TokenizerKind))}"
            )
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
                "data path is missing; source 'text' needs the path of a .txt or .jsonl file"
            )
        if self.source == "huggingface" and not self.name:
            raise UserError("data name is missing; source 'huggingface' needs the name of a data set")
        self._check_vocabulary()
        if not 0 < self.heldout < 1:
            raise UserError(f"data heldout is {self.heldout}; it must lie between 0 and 1")
        if self.documents < 2:
            raise UserError(f"data documents is {self.documents}; it must be 2 or more")

    def settings(self) -> dict[str, object]:
        """The fields that this source reads, which is all that its tokens depend on."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if self.source in _FIELDS_OF.get(field.name, (self.source,))
        }

    def _check_vocabulary(self) -> None:
        if self.tokenizer == "bytes":
            if self.vocabulary not in (257, 2048):  # 2048 is the default, untouched
                raise UserError(
                    f"data vocabulary is {self.vocabulary}, but tokenizer 'bytes' always has 257 ids; "
                    "remove it, or set tokenizer = 'bpe'"
                )
            object.__setattr__(self, "vocabulary", 257)
        elif not 258 <= self.vocabulary <= 65_536:
            raise UserError(
                f"data vocabulary is {self.vocabulary}; "
                "a bpe has from 258 (bytes, one merge, end of text) to 65536 ids"
            )
