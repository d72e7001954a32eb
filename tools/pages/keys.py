"""The tables of keys, options, steps and metrics, from the dataclasses and their ``#:`` comments."""

import ast
import csv
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from modbench.data.config import DataConfig
from modbench.measure.config import STEPS, MeasureConfig
from modbench.model.config import ModelConfig
from modbench.records.metrics import METRICS
from modbench.routing.registry import installed_modules, router_class
from modbench.sweep.tables import Axes, Comparison, Header, IsoFlopConfig, KeepConfig, Scheme
from modbench.sweep.track import TrackConfig
from modbench.timing.config import TimeConfig
from modbench.train.config import TrainTable

ROOT = Path(__file__).parents[2]
#: The dataclass of each table of a suite file; [[shapes]] has the keys of [model].
TABLES: dict[str, type] = {
    "suite": Header,
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainTable,
    "measure": MeasureConfig,
    "time": TimeConfig,
    "keep": KeepConfig,
    "track": TrackConfig,
    "isoflop": IsoFlopConfig,
    "sweep": Axes,
    "schemes": Scheme,
    "compare": Comparison,
}
#: Bounds from here on keep arithmetic finite; no user comes near them.
_FAR = 2**32
_BOUNDS = {Ge: ">=", Gt: ">", Le: "<=", Lt: "<"}
_TYPES = {int: "integer", float: "number", str: "string", bool: "true, false", dict: "table"}


def meanings(kind: type) -> dict[str, str]:
    """The ``#:`` comments of the fields of dataclass ``kind``, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("modbench."):
            found |= own_meanings(inspect.getsource(base))
    return found


def own_meanings(source: str) -> dict[str, str]:
    """Comments on the lines of each field of the class in ``source``, else on those above it."""
    comments, alone = dict[int, str](), set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.string.startswith("#:"):
            comments[token.start[0]] = token.string.removeprefix("#:").strip()
            if token.line.strip().startswith("#:"):
                alone.add(token.start[0])
    found = {}
    (kind,) = ast.parse(source).body
    for node in kind.body if isinstance(kind, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            if not any(line in comments for line in lines):
                first = node.lineno
                while first - 1 in alone:
                    first -= 1
                lines = range(first, node.lineno)
            if said := [comments[line] for line in lines if line in comments]:
                found[node.target.id] = " ".join(said)
    return found


def default(field: "Field[Any]") -> str:
    """The default of ``field`` in TOML, ``unset`` for None, or ``required``."""
    if field.default_factory is not MISSING:
        return _toml(field.default_factory())
    return "required" if field.default is MISSING else _toml(field.default)


def _toml(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple | list):
        return f"`[{', '.join(_toml(entry).strip('`') for entry in value)}]`"
    return "`{}`" if isinstance(value, dict) else f"`{value}`"


def values(hint: Any) -> str:
    """The values that a field of type ``hint`` takes, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [
            f"{sign} {getattr(bound, name):g}"
            for bound in arguments[1:]
            for (kind, sign), name in zip(_BOUNDS.items(), ("ge", "gt", "le", "lt"), strict=True)
            if isinstance(bound, kind) and getattr(bound, name) < _FAR
        ]
        return " ".join([values(arguments[0]), " and ".join(bounds)]).rstrip()
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(values(one) for one in arguments if one is not NoneType)
    if origin is tuple:
        word, *bounds = values(arguments[0]).split(" ", 1)
        plural = word if word.startswith("`") else f"{word}s"
        return " ".join(["list of", plural, *bounds])
    return _TYPES[origin or hint]


def limits(field: "Field[Any]", hint: Any) -> str:
    """The values that ``field`` takes, without the type where its default shows it."""
    said = values(hint)
    if default(field) in ("unset", "required"):
        return said
    return re.sub(r"^(integer|number|string|true, false|table)\b ?(?!or )", "", said)


def key_table(kind: type, heading: str = "key") -> Iterator[str]:
    """One row for each field of ``kind`` that can be set. Raises KeyError: a field has no meaning."""
    hints, said = get_type_hints(kind, include_extras=True), meanings(kind)
    yield f"| {heading} | values | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for field in fields(kind):
        if field.init:
            meaning = said[field.name]
            for python, toml in (("|", "\\|"), ("``", "`"), ("None: ", "unset: "), ("(): ", "empty: ")):
                meaning = meaning.replace(python, toml)
            allowed = limits(field, hints[field.name])
            yield f"| `{field.name}` | {allowed} | {default(field)} | {meaning} |"


def step_table() -> Iterator[str]:
    yield "| step | what it does |"
    yield "| --- | --- |"
    for name, meaning in STEPS.items():
        yield f"| `{name}` | {meaning} |"


#: Routers whose options others take as a whole, with what those options are called.
_FAMILIES = {"mod": "depth", "token_choice": "expert"}


def router_sections() -> Iterator[str]:
    """The options of `_FAMILIES`, and a section for each router with the options that it adds."""
    names = [name for name, module in installed_modules().items() if module.startswith("modbench.")]
    options = {name: [*key_table(router_class(name), "option")] for name in names}
    head = options[names[0]][:2]
    shared = {name: options[name][2:] for name in _FAMILIES}
    for name, family in _FAMILIES.items():
        yield from (f"## {family.capitalize()} options\n", *head, *shared[name], "")
    for name in names:
        kind = router_class(name)
        yield f"## {name}\n"
        source = Path(inspect.getfile(kind))
        words = (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n\n")[0]
        words = re.split(r"(?<=[a-z)])\. (?=[A-Z])", " ".join(words.split()).replace("``", "`"))[
            0
        ].rstrip(".")
        yield f"{words}. [{source.name}](../{source.relative_to(ROOT)})\n"
        rows, takes = options[name][2:], []
        for of, family in _FAMILIES.items():
            link = f"[{family} options](#{family}-options)"
            same = [row.split("`")[1] for row in shared[of] if row in rows]
            if len(same) == len(shared[of]):
                takes.append(f"all {link}")
            elif same:
                takes.append(f"{', '.join(f'`{one}`' for one in same)} of the {link}")
            rows = [row for row in rows if row not in shared[of]]
        if takes:
            yield f"Takes {' and '.join(takes)}.\n"
        presets = (
            f"`{name}:{preset}` ("
            + ", ".join(f"`{option} = {_toml(value).strip('`')}`" for option, value in given.items())
            + ")"
            for preset, given in kind.presets.items()
        )
        if kind.presets:
            yield f"Presets: {'; '.join(presets)}.\n"
        if rows:
            yield from (*head, *rows, "")


def metric_table() -> Iterator[str]:
    """One row for each metric of records."""
    arrows = {"lower": " ↓", "higher": " ↑", "none": ""}
    yield "| metric | unit | meaning |"
    yield "| --- | --- | --- |"
    for metric in METRICS.values():
        yield f"| `{metric.name}` | {metric.unit}{arrows[metric.direction]} | {metric.meaning} |"


def column_tables() -> dict[str, list[str]]:
    """The table of the columns of each CSV file of a report, from docs/columns.csv."""
    tables: dict[str, list[str]] = {}
    with (ROOT / "docs" / "columns.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            table = tables.setdefault(line["file"], ["| column | meaning |", "| --- | --- |"])
            names = ", ".join(f"`{name}`" for name in line["columns"].split(", "))
            table.append(f"| {names} | {line['meaning']} |")
    return tables


#: What makes the lines of each block.
LINES: dict[str, Callable[[], Iterator[str]]] = {
    **{name: partial(key_table, kind) for name, kind in TABLES.items()},
    "steps": step_table,
    "routers": router_sections,
    "metrics": metric_table,
    **{f"columns of {file}": partial(iter, table) for file, table in column_tables().items()},
}
TEXTS: dict[str, Callable[[], str]] = {
    name: (lambda of=of: "\n".join(of())) for name, of in LINES.items()
}


def filled(page: str, texts: Mapping[str, Callable[[], str]]) -> str:
    """``page`` with the text between each marker and its end replaced by what ``texts`` makes."""
    for name, text in texts.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        if start in page:
            before, _, rest = page.partition(start)
            page = f"{before}{start}{text()}\n{end}{rest.partition(end)[2]}"
    return page
