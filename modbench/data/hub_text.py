"""Rows of a Hugging Face data set: the first in memory, or streamed into files."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from modbench.data.cache_folder import writable
from modbench.data.config import DataConfig
from modbench.data.documents import no_field, text_of
from modbench.errors import UserError, reason, several

#: Documents in a file: about 50 MB of text, twice in memory while it is written.
FILE_DOCUMENTS = 10_000


def first_texts(config: DataConfig, say: Callable[[str], None]) -> list[str]:
    """The texts of the first ``documents`` of ``config``, empty for one without. Raise a `UserError` if
    they can't be read."""
    say(f"streaming {several(config.documents, 'document')} of {_name(config)}")
    with _readable(config):
        return [text_of(row, config.text_field) for row in islice(_stream(config), config.documents)]


def fetch(config: DataConfig, folder: Path, say: Callable[[str], None]) -> Path:
    """Stream the first ``documents`` of ``config`` into .parquet files in ``folder``, from where an
    earlier call was stopped; return the folder of the files. Raise a `UserError` as `first_texts` does,
    or if the folder can't be written."""
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
        texts = [text_of(row, config.text_field) for row in batch]
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


def _stream(config: DataConfig) -> Any:
    """The rows of ``config``, of which only the text is decoded."""
    import datasets

    builder = datasets.load_dataset_builder(str(config.name), config.subset, revision=config.revision)
    stream = builder.as_streaming_dataset(split=config.split)
    if builder.name == "json":
        builder.info.features = None  # those of the first rows, to which it would cast all others
    if config.text_field not in (known := stream.column_names or [config.text_field]):
        raise no_field(_name(config), config.text_field, known)
    return stream.select_columns([config.text_field])


@contextmanager
def _readable(config: DataConfig) -> Iterator[None]:
    # Streaming raises errors of the transport, the hub's client and parsers; all have the same remedy.
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{_name(config)} (subset {config.subset}, split '{config.split}') can't be read "
            f"({type(error).__name__}: {reason(error)}); check its name, subset, split and the network, "
            "or set source = 'pypi-en-v1'"
        ) from error
