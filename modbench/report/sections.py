"""A page as a list of parts, and the structure that the pages leaderboard.md share: tables, downstream
tasks, figures, columns, details."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from modbench.records.result import Result
from modbench.report.captions import CAPTIONS
from modbench.report.leaderboard.columns import Column, column_table
from modbench.report.leaderboard.row import MACHINE
from modbench.report.table import Table, escaped
from modbench.report.timing.values import machine_in_words


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Items:
    """A list with bullets."""

    items: Sequence[str]


@dataclass(frozen=True)
class Picture:
    alt: str
    file: str


#: A str is a paragraph. All texts are Markdown; only the cells of tables are not.
Part = str | Heading | Items | Picture | Table

_FIGURES = Heading("Figures")
_COLUMNS = Heading("What the columns mean")


@dataclass(frozen=True)
class Page:
    """The parts of a page, from its title on."""

    parts: Sequence[Part]

    def before_figures(self) -> list[Part]:
        """The tables, and the text around them, up to figures and explanations; without pictures."""
        lead = takewhile(lambda part: part not in (_FIGURES, _COLUMNS), self.parts)
        return [part for part in lead if not isinstance(part, Picture)]

    def to_markdown(self) -> str:
        return "\n\n".join(map(as_markdown, self.parts)) + "\n"


def as_markdown(part: Part) -> str:
    match part:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Items(items):
            return "\n".join(f"- {item}" for item in items)
        case Picture(alt, file):
            return f"![{alt}]({file})"
        case Table():
            return part.to_markdown()
    return part


def suite_page(
    records: Sequence[Result],
    tables: Iterable[Part],
    *,
    downstream: Iterable[Part],
    drawn: Collection[str],
    columns: Iterable[Column],
    manual: str,
    details: Iterable[Part],
    notes: Iterable[str],
) -> Page:
    """The page of ``records``. ``drawn``: names of the files with figures; ``columns``: of the first
    tables; ``manual``: the topic of `modbench docs` that explains them."""
    suites = sorted({(record.suite["name"], record.suite["version"]) for record in records})
    named = ", ".join(f"{escaped(name)}, version {version}" for name, version in suites)
    parts: list[Part] = [Heading(f"Suite {named}", 1), *tables, *downstream, *pictures(drawn)]
    parts += [_COLUMNS, column_table(columns)]
    parts.append(f"More, and what one may conclude: `modbench docs {manual}`.")
    parts += [Heading("Details"), *details, Heading("Notes", 3)]
    return Page([*parts, Items([*notes, *_origin(records)])])


def pictures(drawn: Collection[str]) -> list[Part]:
    """The figures among the files ``drawn``, a sentence above each."""
    parts: list[Part] = []
    for name, sentence in CAPTIONS.items():
        if f"{name}.svg" in drawn:
            parts += [sentence, Picture(name.replace("_", " "), f"{name}.svg")]
    return [_FIGURES, *parts] if parts else []


def in_words(settings: Mapping[str, object]) -> str:
    """Names and values of ``settings`` as Markdown, sorted by name."""
    return ", ".join(f"{escaped(name)} {escaped(settings[name])}" for name in sorted(settings))


def made_by(code: Mapping[str, object]) -> str:
    """Version, commit and local changes of the modbench that wrote a line."""
    commit = f"commit {code['commit'] or 'not known'}"
    return f"modbench {code['version']}, {commit}{' with local changes' if code['dirty'] else ''}"


def _origin(records: Sequence[Result]) -> Iterable[str]:
    """Notes on the machines and the code that made ``records``."""
    machines = {machine_in_words(record.environment, MACHINE) for record in records if record.metrics}
    yield from (f"Machine: {escaped(machine)}." for machine in sorted(machines))
    codes = {made_by(record.code) for record in records}
    yield from (f"Code: {escaped(code)}." for code in sorted(codes))
    routers = [record.run.router for record in records]
    plugins = {(router.name, router.plugin_sha256) for router in routers if router.plugin_sha256}
    for name, sha in sorted(plugins):
        yield f"Plugin: {escaped(name)}, code with sha256 {escaped(sha)}."
