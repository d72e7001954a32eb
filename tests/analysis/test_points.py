"""Reading isoFLOP points, and the curves that they form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from modbench.analysis.points import Points, fit_points, read_points
from modbench.errors import UserError

GOOD = "size,tokens,loss\n" + "".join(f"{n}e6,{100 // n}e9,3\n" for n in (1, 2, 5))
POINT = {"group": "all", "FLOPs": 1e18, "size": 1e8, "tokens": 1e9, "loss": 3.0, "seed": None}


def read(folder: Path, text: str | bytes) -> Points:
    file = folder / "points.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_points(file)


def read_in(*points: Mapping[str, Any]) -> Points:
    frame = pd.DataFrame([POINT | dict(point) for point in points], index=range(2, 2 + len(points)))
    return Points(Path("points.csv"), frame.astype({"seed": "Int64"}), [])


@pytest.mark.parametrize(
    "text",
    [
        "size,tokens,flops,loss\n1e8,2e9,1.2e18,3.5\n",
        "N,D,C,Loss\n1e8,2e9,1.2e18,3.5\n",
        "source,Params,Training Tokens,budget,val-loss\nmine,1e8,2e9,1.2e18,3.5\n",
        "\ufeff# a comment\nparameters;tokens;compute;eval_loss\n\n1e8 ; 2e9;1.2e18;3.5\n",
        'model_size\ttokens\tFLOPs\tloss\r\n"1e8"\t2e9\t1.2e18\t3.5\r\n',
    ],
)
def test_columns_are_found_by_name(tmp_path: Path, text: str) -> None:
    (point,) = read(tmp_path, text).frame.to_dict("records")
    assert point.pop("seed") is None
    assert point == {"group": "all", "FLOPs": 1.2e18, "size": 1e8, "tokens": 2e9, "loss": 3.5}


def test_groups_seeds_and_lines_are_read(tmp_path: Path) -> None:
    text = "scheme,size,tokens,loss,seed\n# mine\nmod,1e8,2e9,3.5,0\nvanilla,1e8,2e9,3.6,1\n"
    points = read(tmp_path, text).frame[["group", "seed"]]
    assert [*points.itertuples(name=None)] == [(3, "mod", 0), (4, "vanilla", 1)]


@pytest.mark.parametrize(
    ("headings", "missing"), [("size,tokens,loss", "FLOPs"), ("size,flops,loss", "tokens")]
)
def test_a_missing_column_follows_from_6_n_d_and_a_note_says_so(
    tmp_path: Path, headings: str, missing: str
) -> None:
    given = 2e9 if missing == "FLOPs" else 1.2e18
    made = read(tmp_path, f"{headings}\n1e8,{given},3\n")
    assert [*made.frame.loc[2, ["FLOPs", "tokens"]]] == pytest.approx([1.2e18, 2e9])
    assert f"no column of {missing}" in made.notes[-1]
    assert "C = 6 N D" in made.notes[-1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty; it needs a line of column names"),
        ("size,tokens,loss\n", "column names and no points"),
        ("size,tokens,los\n1,2,3\n", "no column of loss; it has the columns size, tokens, los, and acc"),
        ("loss,tokens\n1,2\n", "no column of size; .* accepted names are size: size, n, params"),
        ("size,loss\n1,2\n", "no column of tokens; .* tokens: tokens, d, .*, flops, c, "),
        ("size,N,tokens,loss\n1,1,2,3\n", "columns 'size' and 'N' both mean size; rename"),
        (GOOD + "124M,1e9,3\n", "line 5, column 'size': '124M' is not a positive number; correct it or"),
        (GOOD + "1e6,1e9,nan\n", "line 5, column 'loss': 'nan' is not a positive number"),
        (GOOD + "1e6,inf,3\n", "line 5, column 'tokens': 'inf' is not a positive number"),
        (GOOD + "1e6,1e9,-3\n", "line 5, column 'loss': '-3' is not a positive number"),
        (GOOD + "1e6,,3\n", "line 5, column 'tokens': '' is not a positive number"),
        (GOOD + "1e6,1,000,3\n", "line 5: it has 4 cells, and the first line names 3 columns"),
        ("size,tokens,loss,seed\n1,2,3,a\n", "line 2, column 'seed': 'a' is not an integer"),
        (b"\x89PNG\r\n\x1a\n", "is not a CSV file in UTF-8"),
        ('size,tokens,loss\n"1"2,3,4\n', "is not a CSV file in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"points\.csv.*{sentence}"):
        read(tmp_path, text)


def test_points_of_nearly_equal_flops_form_a_curve() -> None:
    flops = [0.91, 1.0, 1.1, 1.37, 1.5]  # steps of 10 %, 10 %, 25 %, 9 %
    points = [{"FLOPs": f * 1e18, "size": s * 1e8} for f in flops for s in (1, 2, 4)]
    fits = fit_points(read_in(*points), ["parabola"])
    assert [*fits.optima["budget"]] == [1e18, pytest.approx(1.435e18)]
    assert "differ by up to 21%" in fits.notes[0]


def test_repeated_points_without_seeds_are_one_point_and_no_measure_of_noise() -> None:
    points = [{"size": s, "loss": 3 + abs(s / 2e8 - 1)} for s in (1e8, 2e8, 4e8)]
    again = {"size": 2e8 + 2, "loss": 3.5}
    fits = fit_points(read_in(*points, again), ["parabola"])
    curve = fits.points[["active_parameters", "loss", "seeds"]].itertuples(index=False, name=None)
    assert [*curve] == [(1e8, 3.5, 1), (2e8 + 1, 3.25, 1), (4e8, 4.0, 1)]
    assert fits.optima["noise_used"].isna().all()
    assert "1 of 4 points repeat" in fits.notes[0]


def test_a_seed_that_is_given_twice_is_refused() -> None:
    points = [{"size": size, "seed": 0} for size in (1e8, 2e8, 4e8, 2e8)]
    with pytest.raises(UserError, match="line 5 repeats group, FLOPs, size and seed of line 3"):
        fit_points(read_in(*points))
