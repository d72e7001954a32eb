"""Rows of a Hugging Face data set: the first in memory, or streamed into files."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from modbench.data.cache_folder import writable
from modbench.data.config import DataConfig
from modbench.data.documents import Document, text_of
from modbench.errors import UserError, several

#: Documents in a file: about 50 MB of text, twice in memory while it is written.
FILE_DOCUMENTS = 10_000


def first_documents(config: DataConfig, say: Callable[[str], None]) -> Iterator[Document]:
    """The first ``documents`` of ``config``, held in memory. Raise a `UserError` if they can't be read
    or one has no text."""
    say(f"streaming {several(config.documents, 'document')} of {_name(config)}")
    with _readable(config):
        rows = list(islice(_stream(config), config.documents))
    for number, row in enumerate(rows):
        yield Document(str(number), text_of(row, config.text_field, _where(config, number)))


def fetch(config: DataConfig, folder: Path, say: Callable[[str], None]) -> Path:
    """Stream the first ``documents`` of ``config`` into .parquet files in ``folder``, from where an
    earlier call was stopped; return the folder of the files. Raise a `UserError` as `first_documents`
    does, or if the folder can't be written."""
    import pyarrow
    from pyarrow import parquet

    text = folder / "text"
    with writable(text):
        text.mkdir(exist_ok=True)
        files = sorted(text.glob("*.parquet"))
    done = sum(parquet.read_metadata(file).num_rows for file in files)
    if done >= config.documents:
        return text
    say(f"streaming {several(config.documents - done, 'document', ',')} of {_name(config)}")
    with _readable(config):
        stream = _stream(config)
        if files:
            stream.load_state_dict(json.loads(parquet.read_metadata(files[-1]).metadata[b"state"]))
        rows = iter(stream)
    while done < config.documents:
        with _readable(config):
            batch = list(islice(rows, min(FILE_DOCUMENTS, config.documents - done)))
        if not batch:  # the data set has no more
            break
        texts = [
            text_of(row, config.text_field, _where(config, number))
            for number, row in enumerate(batch, start=done)
        ]
        done += len(batch)
        # The place in the stream is part of the file, so that both exist or neither.
        table = pyarrow.table({config.text_field: texts}).replace_schema_metadata(
            {"state": json.dumps(stream.state_dict())}
        )
        name = f"{done:012}.parquet"
        with writable(text):
            parquet.write_table(table, folder / f"{name}.part", row_group_size=1000, compression="zstd")
            (folder / f"{name}.part").replace(text / name)
    return text


def _name(config: DataConfig) -> str:
    return f"data set '{config.name}'"


def _where(config: DataConfig, number: int) -> str:
    return f"{_name(config)}, document {number}"


def _stream(config: DataConfig) -> Any:
    import datasets

    return datasets.load_dataset(
        config.name, config.subset, split=config.split, revision=config.revision, streaming=True
    )


@contextmanager
def _readable(config: DataConfig) -> Iterator[None]:
    # Streaming raises errors of the transport, the hub's client and parsers; all have the same remedy.
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or "no message"
        raise UserError(
            f"{_name(config)} (subset {config.subset}, split '{config.split}') can't be read "
            f"({type(error).__name__}: {reason}); check its name, subset, split and the network, or set "
            "source = 'pypi-en-v1'"
        ) from error
