"""The command `modbench fit`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from modbench.cli.messages import tell
from modbench.cli.options import Several, flat
from modbench.errors import UserError

_Fit = Literal["parabola", "akima", "surface"]


def fit(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    *,
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    format: Literal["markdown", "csv", "json"] = "markdown",
    fit: Annotated[Several[_Fit], arg(metavar="parabola|akima|surface ...", help_behavior_hint="")] = (),
) -> int:
    """Fit isoFLOP curves of your own points: the optimum at each budget, the loss surface, and the
    exponents of the optimum. Writes FILE's name with .fit.csv, .fit.png and .fit.svg. Trains nothing.

    Example: modbench fit points.csv

    Args:
        file: CSV file with columns of size, loss, and tokens or FLOPs; seed and group if there are any
            (`modbench docs isoflop` lists the accepted names)
        out: folder of the written files; by default FILE's
        format: what is printed: markdown: tables for reading; csv: the table that is written; json: one
            JSON document on the last line
        fit: fits to make; by default all three
    """
    from modbench.analysis.isoflop import FITS
    from modbench.analysis.points import fit_points, read_points
    from modbench.records.store import write_files
    from modbench.report.plot_style import drawn_files
    from modbench.report.points import points_figure, points_json, points_page, points_table
    from modbench.report.table import to_csv

    chosen = flat(fit) or FITS
    fits = fit_points(read_points(file), [name for name in FITS if name in chosen])
    folder = out or file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {folder} is a file; name a folder") from None
    except OSError as error:
        raise UserError(f"--out {folder} can't be made ({error.strerror}); name another") from None
    table = to_csv(points_table(fits))
    name = f"{file.stem}.fit"
    written = {
        f"{name}.csv": table.encode(),
        **drawn_files({name: lambda: points_figure(fits)}, png=True),
    }
    write_files(folder, written)
    for path in written:
        tell(f"wrote {folder / path}")
    if format == "csv":
        print(table, end="")
    else:
        print(points_json(fits) if format == "json" else points_page(fits).to_markdown().rstrip())
    return 0
