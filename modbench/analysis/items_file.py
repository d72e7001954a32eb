"""The file of a cell with the scores of single items, ``items.npz``, so that schemes can be compared
item by item with `modbench.analysis.items.paired_bootstrap`. N items.
"""

import io
import math
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modbench.analysis.items import ItemScores
from modbench.analysis.noise import Array
from modbench.errors import UserError

#: Columns of a task and their types.
_COLUMNS = {
    "doc_id": np.int64,
    "bytes": np.int32,
    "logprob": np.float32,
    "margin": np.float32,
    "correct": np.float32,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredItems:
    """Items of a task, in its order.

    ``doc_id`` (N,): number of the item in the data set; ``bytes`` (N,): size of the right answer, the
    weight of an item in bits per byte of a whole text.
    """

    doc_id: Array
    bytes: Array
    scores: ItemScores


def items_bytes(tasks: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Return the content of a file with the columns of each of ``tasks``: ``doc_id``, ``bytes``,
    ``logprob`` and ``margin`` in nats, ``correct``."""
    arrays = {
        f"{task}/{name}": np.asarray(columns[name], dtype=kind)
        for task, columns in tasks.items()
        for name, kind in _COLUMNS.items()
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def read_items(path: str | Path) -> dict[str, StoredItems]:
    """Read the items of each task from the file ``path``, ``results/SUITE/cells/KEY/items.npz``. Raises
    UserError: it is missing or is no such file."""
    tasks: dict[str, dict[str, Array]] = defaultdict(dict)
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                task, _, column = name.rpartition("/")
                tasks[task][column] = file[name].astype(np.float64)
        return {task: _stored(columns) for task, columns in tasks.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} can't be read as scores of items ({error}); give the items.npz of a cell"
        ) from error


def _stored(columns: dict[str, Array]) -> StoredItems:
    sizes_N = columns["bytes"]
    with np.errstate(divide="ignore", invalid="ignore"):
        bits_N = np.where(sizes_N > 0, -columns["logprob"] / (math.log(2) * sizes_N), math.nan)
    scores = ItemScores(correct=columns["correct"], bits_per_byte=bits_N, margin=columns["margin"])
    return StoredItems(doc_id=columns["doc_id"], bytes=sizes_N, scores=scores)
