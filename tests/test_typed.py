from dataclasses import dataclass
from typing import Any, Literal

import pytest

from modbench.errors import UserError
from modbench.typed import built


@dataclass(frozen=True, kw_only=True)
class Point:
    steps: int
    rate: float = 0.5
    mode: Literal["a", "b"] = "a"
    tags: tuple[str, ...] = ()
    limit: int | None = None
    lengths: tuple[int, ...] | None = None
    extra: dict[str, Any] | None = None


def test_a_whole_float_is_a_whole_number_as_it_was_written() -> None:
    assert built("here", {"steps": 1e13}, Point).steps == 10**13
    steps = built("here", {"steps": 1e23}, Point).steps
    assert steps == 10**23
    assert type(steps) is int


def test_a_whole_number_is_a_number_and_a_list_a_tuple() -> None:
    point = built("here", {"steps": 2, "rate": 1, "tags": ["u", "v"], "limit": 3.0}, Point)
    assert point == Point(steps=2, rate=1.0, tags=("u", "v"), limit=3)
    assert type(point.rate) is float


def test_one_value_is_a_list_of_one() -> None:
    assert built("here", {"steps": 2, "tags": "u"}, Point).tags == ("u",)
    assert built("here", {"steps": 2, "lengths": 2e10}, Point).lengths == (20_000_000_000,)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"steps": 1.5}, "here steps is 1.5; it should be a valid integer"),
        ({"steps": True}, "here steps is True; it should be a valid integer"),
        ({"steps": float("inf")}, "here steps is inf; it should be a valid integer"),
        ({"steps": 1, "rate": float("nan")}, "here rate is nan; it should be a finite number"),
        ({"steps": 1, "rate": "fast"}, "here rate is 'fast'; it should be a valid number"),
        ({"steps": 1, "mode": "c"}, "here mode is 'c'; it should be 'a' or 'b'"),
        ({"steps": 1, "tags": {"u": 1}}, "here tags is {'u': 1}; it should be a list"),
        ({"steps": 1, "tags": [1]}, "here tags is [1]; it should be a valid string"),
        ({"steps": 1, "limit": "x"}, "here limit is 'x'; it should be a valid integer"),
        ({"steps": 1, "stepz": 1}, "here has no 'stepz'; did you mean 'steps'? known: "),
        ({}, "here needs 'steps'; give it a value"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_its_place_and_what_would_be_right(
    table: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        built("here", table, Point)
    assert str(error.value).startswith(sentence)
