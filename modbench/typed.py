"""Tables of TOML and JSON, and values of Python code, as typed objects: pydantic checks them, and one
function turns its errors into a sentence."""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from modbench.errors import UserError, known_names

Kind = TypeVar("Kind")
Loc = Sequence[str | int]  #: keys, and numbers of entries from 0

#: Types of fields with a range; integers can be added, divided and drawn without overflow.
Count = Annotated[int, Ge(1), Le(10**30)]
Natural = Annotated[int, Ge(0), Le(10**30)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
#: Fractions: of a whole, above 0; of what is kept, below 1.
Part = Annotated[float, Gt(0), Le(1)]
Share = Annotated[float, Ge(0), Lt(1)]
UpTo1 = Annotated[float, Ge(0), Le(1)]

#: Names of series that a router's author records (`modbench.model.trace.Trace.record`).
SERIES = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,39}")
SERIES_WORDS = "1 to 40 letters, digits and _, starting with a letter"

#: pydantic's words, and those of TOML.
_WORDS = {"Input": "it", "an object": "a table", "a valid array": "a list", "a valid tuple": "a list"}


def _spaced(path: Loc) -> str:
    return "".join(f" {step}" for step in path)


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import TypeAdapter

    config: Any = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
    config["arbitrary_types_allowed"] = True
    return TypeAdapter(tuple[hint], config=config)  # dataclasses take the config of what holds them


def check_type(what: str, value: Any, hint: Any) -> Any:
    """Return ``value``, which Python code gives, as an instance of ``hint``. An int is accepted as a
    float; a float is never an int, and a list never a tuple. Raises UserError: it has another type, or
    is not finite; the message starts with ``what``."""
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python((value,))[0]
    except ValidationError as error:
        raise UserError(_sentence(what, error, value, hint)) from error


def built(where: str, table: Any, kind: type[Kind], place: Callable[[Loc], str] = _spaced) -> Kind:
    """Return the ``table`` of a TOML or JSON file as an instance of the dataclass ``kind``. A float
    without a fraction (``1e13``) is accepted as an int, one value as a list of one, a bool as neither.
    Raises UserError: an unknown or missing key, a wrong type, a value out of range, with the nearest
    name, or too many levels; the message starts with ``where``, and ``place`` gives the words of a path
    in ``table``."""
    try:
        return _validated(where, table, kind, place)
    except RecursionError:
        raise UserError(
            f"{where.removesuffix(':')}: tables or lists are nested too deeply; write fewer levels"
        ) from None


def _validated(where: str, table: Any, kind: type[Kind], place: Callable[[Loc], str]) -> Kind:
    from pydantic import ValidationError

    hint: Any = kind
    value = _as_json(table, hint)
    # Strict JSON, unlike strict Python, has lists for tuples and tables for dataclasses.
    text = json.dumps([value], default=str)  # a date of TOML is a text
    try:
        return _adapter(hint).validate_json(text)[0]  # type: ignore[no-any-return]
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":  # pydantic's own limit, of about 200 levels
            raise RecursionError from error
        raise UserError(_sentence(where, error, value, hint, place)) from error


def overrides(
    where: str, table: Mapping[str, Any], kind: type, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values of ``table``, which stand in place of those of ``base``, as fields of ``kind``.
    Raises UserError: see `built`."""
    whole: Any = built(where, {**base, **table}, kind)
    return {key: getattr(whole, key) for key in table}


def _alternatives(hint: Any) -> list[Any]:
    """Return the types that ``hint`` allows, without None and annotations."""
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _alternatives(part)]
    return [] if hint is NoneType else [hint]


def _is_table(kind: Any) -> bool:
    return is_dataclass(kind)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the type of each key of the dataclass ``kind``."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _inner(hint: Any, step: str | int) -> Any:
    """Return the type at key or entry ``step`` of ``hint``; None: it is no dataclass or list of them."""
    for kind in _alternatives(hint):
        if _is_table(kind):
            return _hints(kind).get(str(step), Any)
        if get_origin(kind) is tuple and any(map(_is_table, _alternatives(get_args(kind)[0]))):
            return get_args(kind)[0]
    return None


def _as_json(value: Any, hint: Any) -> Any:
    """Convert floats without a fraction to ints, and one value to a list; not in tables of any keys."""
    if isinstance(value, float) and value.is_integer():
        value = int(Decimal(repr(value)))  # int(1e23) would be 10**23 - 8388608
    kinds = {get_origin(kind) or kind for kind in _alternatives(hint)}
    if kinds == {tuple} and isinstance(value, int | float | str):
        value = [value]
    if isinstance(value, list | tuple):
        return [_as_json(entry, _inner(hint, 0)) for entry in value]
    if isinstance(value, Mapping) and any(map(_is_table, kinds)):
        return {key: _as_json(entry, _inner(hint, key)) for key, entry in value.items()}
    return value


def _located(loc: Loc, value: Any, hint: Any) -> tuple[Loc, Any, Any]:
    """Return the steps of ``loc`` that lead through tables, and the value and the type there; further
    ones are pydantic's, or number the values of a list."""
    for number, step in enumerate(loc):
        inner = _inner(hint, step)
        if inner is None:
            return loc[:number], value, hint
        value, hint = value[step], inner
    return loc, value, hint


def _sentence(
    where: str, error: Any, value: Any, hint: Any, place: Callable[[Loc], str] = _spaced
) -> str:
    """Return the sentence of a `pydantic.ValidationError`: the place, the value and what would be right.
    A misspelt key comes before the one that is missing. Raises what code of ``hint`` has raised."""
    turns = {"unexpected_keyword_argument": 0, "missing": 2}
    details = sorted(error.errors(include_url=False), key=lambda one: turns.get(one["type"], 1))
    detail = details[0]
    loc = detail["loc"][1:]
    if detail["type"] in turns:
        path, _, kind = _located(loc[:-1], value, hint)
        if detail["type"] == "missing":
            return f"{where}{place(path)} needs '{loc[-1]}'; give it a value"
        known = _hints(next(filter(_is_table, _alternatives(kind))))
        return f"{where}{place(path)} has no '{loc[-1]}'; {known_names(loc[-1], known)}"
    path, given, _ = _located(loc, value, hint)
    same = [one for one in details if one["loc"][1:][: len(path)] == path]
    problem = " or ".join(dict.fromkeys(one["msg"] for one in same))
    if cause := detail.get("ctx", {}).get("error"):
        if not isinstance(cause, UserError):
            raise cause
        return f"{where}{place(path)}: {cause}"
    expected = re.findall("'(.*?)'", str(detail.get("ctx", {}).get("expected")))
    for near in difflib.get_close_matches(str(detail["input"]), expected, n=1):
        problem += f"; did you mean '{near}'?"
    for word, ours in _WORDS.items():
        problem = problem.replace(word, ours)
    shown = repr(given)
    return f"{where}{place(path)} is {f'{shown[:77]}...' if len(shown) > 80 else shown}; {problem}"
