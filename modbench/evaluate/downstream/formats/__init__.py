"""Formats of a file of items that is a task of its own, named as the file: multiple choice, minimal
pairs and continuations. The YAML files here have what lm-eval needs besides the name and the file."""

import json
from pathlib import Path

from modbench.errors import UserError

#: Fields of a line, by format; the file FORMAT.yaml lies here.
FIELDS: dict[str, tuple[str, ...]] = {
    "choices": ("query", "choices", "gold"),
    "pairs": ("sentence_good", "sentence_bad"),
    "continuation": ("context", "continuation"),
}
#: The YAML files of the formats.
FORMATS = tuple(Path(__file__).parent / f"{name}.yaml" for name in FIELDS)


def format_of(file: Path) -> Path:
    """Return the YAML file of the format of ``file``, which the fields of its first line decide. Raises
    UserError: that line is not a JSON object, or has the fields of no format."""
    try:
        with file.open(encoding="utf-8") as lines:
            row = json.loads(next(lines, ""))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}, line 1 can't be read as JSON ({error})") from error
    row = row if isinstance(row, dict) else {}
    for path, fields in zip(FORMATS, FIELDS.values(), strict=True):
        if row.keys() >= set(fields):
            return path
    formats = "; or ".join(" and ".join(fields) for fields in FIELDS.values())
    raise UserError(
        f"{file}, line 1 has the fields {', '.join(row) or 'of none'}; the file is no task that "
        f"lm-eval knows by name, so it needs {formats}"
    )
