"""Points of isoFLOP curves, read from a CSV file with named columns."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from modbench.errors import UserError, is_file, printable

#: Accepted names of each column, in lower case with underscores.
COLUMNS: dict[str, tuple[str, ...]] = {
    "size": ("size", "n", "params", "parameters", "n_params", "num_params", "model_size"),
    "tokens": ("tokens", "d", "n_tokens", "num_tokens", "train_tokens", "training_tokens"),
    "FLOPs": ("flops", "c", "compute", "budget", "train_flops", "training_flops"),
    "loss": ("loss", "val_loss", "validation_loss", "eval_loss", "test_loss", "heldout_loss"),
    "seed": ("seed",),
    "group": ("group", "scheme", "experiment", "router"),
}
#: Name of the group in a file without a column of groups.
ALL = "all"


@dataclass(frozen=True)
class Points:
    """The points of ``file``, and sentences on how they were read. Columns of ``frame``: group, size,
    tokens, FLOPs, loss, and seed, which is missing in a file without seeds; its index is the number of
    the line."""

    file: Path
    frame: pd.DataFrame
    notes: Sequence[str]


def read_points(file: Path) -> Points:
    """Read the points of ``file``. Missing tokens, or missing FLOPs, follow from C = 6 N D. Blank lines
    and lines that start with ``#`` are skipped. Raises UserError: the file does not exist, is not CSV,
    lacks a column, or holds a cell that is not a positive number."""
    (_, headings), *lines = [*_lines(file)] or [(0, [])]
    if not headings:
        raise UserError(f"{file} is empty; it needs a line of column names and a line for each point")
    places = _places(file, headings)
    for number, cells in lines:
        if len(cells) != len(headings):
            raise UserError(
                f"{file}, line {number}: it has {len(cells)} cells, and the first line names "
                f"{len(headings)} columns; quote cells that hold a separator"
            )
    if not lines:
        raise UserError(f"{file} holds column names and no points; add a line for each point")
    text = pd.DataFrame([cells for _, cells in lines], index=[number for number, _ in lines], dtype=str)
    points = {"group": ALL, "seed": pd.NA}
    for meaning, place in places.items():
        cells = text[place]
        points[meaning] = cells if meaning == "group" else pd.to_numeric(cells, errors="coerce")
        if meaning == "group":
            continue
        wanted, is_good = "a positive number", np.isfinite(points[meaning]) & (points[meaning] > 0)
        if meaning == "seed":
            wanted, is_good = "an integer", cells.str.fullmatch(r"[+-]?\d+")
        for number, cell in cells[~is_good].items():
            raise UserError(
                f"{file}, line {number}, column '{headings[place]}': '{cell}' is not {wanted}; correct "
                "it or remove the line"
            )
    names = (f"{meaning} from '{headings[place]}'" for meaning, place in places.items())
    notes = [f"Columns read: {', '.join(names)}."]
    frame = pd.DataFrame(points, index=text.index)
    for missing, given in (("tokens", "FLOPs"), ("FLOPs", "tokens")):
        if missing not in places:
            flops = 6 * frame["size"]
            frame[missing] = frame[given] / flops if missing == "tokens" else frame[given] * flops
            notes.append(
                f"The file has no column of {missing}: they follow from size and {given} by the "
                "convention C = 6 N D."
            )
    return Points(file, frame.astype({"seed": "Int64"}), notes)


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    if not is_file(file):
        raise UserError(f"{file}: no such file; name a CSV file of points")
    try:
        text = printable(file.read_text(encoding="utf-8-sig"))
        first = next((line for line in text.splitlines() if line and not line.startswith("#")), "")
        reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count), strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells) and not cells[0].startswith("#"):
                yield reader.line_num, [cell.strip() for cell in cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8 ({error}); export it as one") from None


def _places(file: Path, headings: Sequence[str]) -> dict[str, int]:
    """The column of each meaning that ``headings`` name."""
    plain = [heading.lower().replace(" ", "_").replace("-", "_") for heading in headings]
    places: dict[str, int] = {}
    for meaning, names in COLUMNS.items():
        columns = [column for column, name in enumerate(plain) if name in names]
        if len(columns) > 1:
            both = " and ".join(f"'{headings[column]}'" for column in columns)
            raise UserError(f"{file}: columns {both} both mean {meaning}; rename all but one of them")
        if columns:
            places[meaning] = columns[0]
    either = "tokens" if "FLOPs" in places else "FLOPs"  # one follows from the other
    missing = [name for name in ("size", "tokens", "FLOPs", "loss") if name not in {*places, either}]
    if missing:
        accepted = "; ".join(
            f"{name}: {', '.join(COLUMNS[name] + COLUMNS['FLOPs'] * (name == 'tokens'))}"
            for name in missing
        )
        raise UserError(
            f"{file} has no column of {' or of '.join(missing)}; it has the columns "
            f"{', '.join(headings)}, and accepted names are {accepted}"
        )
    return places
