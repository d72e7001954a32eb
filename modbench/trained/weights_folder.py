"""Folders of trained weights: ``model.safetensors`` and ``modbench.json``, which holds what is needed to
load them on another machine: router, options, shape, training settings and the tokenizer's merges.
Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError
from modbench.records.line import canonical_json, cell_key, check, sha256
from modbench.records.record import CellRecord
from modbench.records.store import write_files

WEIGHTS = "model.safetensors"
DESCRIPTION = "modbench.json"
_FORMAT = 1
_HINTS = get_type_hints(CellRecord, include_extras=True)
_CELL, _AUDIT = TypeAdapter(_HINTS["cell"]), TypeAdapter(_HINTS["audit"])


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of ``modbench.json``."""

    suite: str  #: name of the suite
    cell: dict[str, Any]  #: the resolved cell; its key is the key of the weights
    merges: Sequence[tuple[int, int]]  #: of the tokenizer; none: bytes
    #: findings of the audit, of the scheme and of the trained weights; none in the folder of a cell,
    #: whose results hold them
    audit: Sequence[dict[str, Any]] = ()

    @property
    def key(self) -> str:
        return cell_key(self.cell)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.merges)


def write_description(folder: Path, description: Description) -> None:
    """Write ``modbench.json`` into ``folder`` in one step. Raises UserError: it can't be written."""
    value: dict[str, Any] = {
        "format": _FORMAT,
        "suite": description.suite,
        "cell": description.cell,
        "merges": [list(merge) for merge in description.merges],
    }
    if description.audit:
        value["audit"] = list(description.audit)
    text = canonical_json(value | {"sha256": sha256(canonical_json(value))})
    write_files(folder, {DESCRIPTION: f"{text}\n".encode()})


def read_description(folder: Path) -> Description | None:
    """Return the description of the weights in ``folder``; None if there is none. Raises UserError: it
    is damaged, or of a newer modbench."""
    path = folder / DESCRIPTION
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
        if value.pop("sha256", None) != sha256(canonical_json(value)):
            raise ValueError("its content differs from its sha256")
        if value["format"] != _FORMAT:
            raise _NewerError
        check("cell", value["cell"], _CELL)
        check("audit", value.get("audit", []), _AUDIT)
        return Description(
            suite=str(value["suite"]),
            cell=value["cell"],
            merges=[(int(left), int(right)) for left, right in value["merges"]],
            audit=value.get("audit", []),
        )
    except _NewerError:
        raise UserError(
            f"{path} was written by a newer modbench; use the version that wrote it"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); copy the folder of the weights again") from error


class _NewerError(Exception):
    """The format is not known."""
