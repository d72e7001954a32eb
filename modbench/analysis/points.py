"""Points of isoFLOP curves, read from a CSV file with named columns."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

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
_Line = tuple[int, list[str]]  #: number and cells


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trained model. ``seed`` is None in a file without a column of seeds."""

    group: str
    flops: float
    size: float
    tokens: float
    loss: float
    seed: int | None
    line: int  #: of the file


@dataclass(frozen=True)
class Points:
    """The points of ``file`` in its order, and sentences on how they were read."""

    file: Path
    points: Sequence[Point]
    notes: Sequence[str]


def read_points(file: Path) -> Points:
    """Read the points of ``file``. Missing tokens, or missing FLOPs, follow from C = 6 N D. Blank lines
    and lines that start with ``#`` are skipped. Raises UserError: the file does not exist, is not CSV,
    lacks a column, or holds a cell that is not a positive number."""
    lines = _lines(file)
    _, headings = next(lines, (0, []))
    if not headings:
        raise UserError(f"{file} is empty; it needs a line of column names and a line for each point")
    places = _places(file, headings)
    points = [_point(file, line, headings, places) for line in lines]
    if not points:
        raise UserError(f"{file} holds column names and no points; add a line for each point")
    names = (f"{meaning} from '{headings[place]}'" for meaning, place in places.items())
    notes = [f"Columns read: {', '.join(names)}."]
    for missing, given in (("tokens", "FLOPs"), ("FLOPs", "tokens")):
        if missing not in places:
            notes.append(
                f"The file has no column of {missing}: they follow from size and {given} by the "
                "convention C = 6 N D."
            )
    return Points(file, points, notes)


def _lines(file: Path) -> Iterator[_Line]:
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


def _point(file: Path, line: _Line, headings: Sequence[str], places: dict[str, int]) -> Point:
    number, cells = line
    if len(cells) != len(headings):
        raise UserError(
            f"{file}, line {number}: it has {len(cells)} cells, and the first line names "
            f"{len(headings)} columns; quote cells that hold a separator"
        )

    def where(meaning: str) -> str:
        return f"{file}, line {number}, column '{headings[places[meaning]]}': '{cells[places[meaning]]}'"

    def positive(meaning: str) -> float:
        try:
            value = float(cells[places[meaning]])
        except ValueError:
            value = -1.0
        if not (isfinite(value) and value > 0):
            raise UserError(f"{where(meaning)} is not a positive number; correct it or remove the line")
        return value

    seed = None
    if "seed" in places:
        try:
            seed = int(cells[places["seed"]])
        except ValueError:
            raise UserError(f"{where('seed')} is not an integer; correct it") from None
    size = positive("size")
    tokens = positive("tokens") if "tokens" in places else positive("FLOPs") / (6 * size)
    return Point(
        group=cells[places["group"]] if "group" in places else ALL,
        flops=positive("FLOPs") if "FLOPs" in places else 6 * size * tokens,
        size=size,
        tokens=tokens,
        loss=positive("loss"),
        seed=seed,
        line=number,
    )
