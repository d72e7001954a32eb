"""Folders of trained weights: ``model.safetensors`` and ``modbench.json``, which holds what is needed to
load them on another machine: router, options, shape, training settings and the tokenizer.
Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from modbench.data.tokenizer import Tokenizer, tokenizer_of
from modbench.errors import UserError, printable
from modbench.records.line import as_json, canonical_json, check, sha256
from modbench.records.record import Finding
from modbench.records.run import Run
from modbench.records.store import write_files

WEIGHTS = "model.safetensors"
DESCRIPTION = "modbench.json"
_FORMAT = 2  #: of `DESCRIPTION`; another one is refused, so raise it with the fields
_AUDIT: TypeAdapter[Sequence[Finding]] = TypeAdapter(list[Finding])


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of ``modbench.json``."""

    suite: str  #: name of the suite
    label: str  #: of its row
    run: Run  #: its key is the key of the weights
    tokenizer: Tokenizer
    #: findings of the audit, of the scheme and of the trained weights; none in the folder of a run,
    #: whose #: results hold them
    audit: Sequence[Finding] = ()


def write_description(folder: Path, description: Description) -> None:
    """Write ``modbench.json`` into ``folder`` in one step. Raises UserError: it can't be written."""
    value: dict[str, Any] = {
        "format": _FORMAT,
        "suite": description.suite,
        "label": description.label,
        "run": description.run.as_json(),
        **description.tokenizer.stored(),
    }
    if description.audit:
        value["audit"] = [as_json(finding) for finding in description.audit]
    text = canonical_json(value | {"sha256": sha256(canonical_json(value))})
    write_files(folder, {DESCRIPTION: f"{text}\n".encode()})


def read_description(folder: Path) -> Description | None:
    """Return the description of the weights in ``folder``; None if there is none. Raises UserError: it
    is damaged, or of another version of modbench."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
        if value.pop("sha256", None) != sha256(canonical_json(value)):
            raise ValueError("its content differs from its sha256")
        if value["format"] == _FORMAT:
            return Description(
                suite=printable(str(value["suite"])),
                label=printable(str(value["label"])),
                run=Run.of(value["run"]),
                tokenizer=tokenizer_of(value, "its tokenizer"),
                audit=check("audit", value.get("audit", []), _AUDIT),
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); copy the folder of the weights again") from error
    raise UserError(
        f"{path} was written by another version of modbench; load it with the one that wrote it"
    )
