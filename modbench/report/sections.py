"""Structure that the pages leaderboard.md share: tables, downstream tasks, figures, columns, details."""

import re
from collections.abc import Collection, Iterable, Sequence

from modbench.records.result import Result
from modbench.report.captions import embedded
from modbench.report.leaderboard.columns import Column, column_table
from modbench.report.leaderboard.row import MACHINE
from modbench.report.table import escaped, made_by
from modbench.report.timing.values import machine_in_words

_COLUMNS = "## What the columns mean"
_AFTER_TABLES = re.compile(rf"^(## Figures|{_COLUMNS})$", re.MULTILINE)


def page(
    records: Sequence[Result],
    tables: Iterable[str],
    *,
    downstream: Iterable[str],
    drawn: Collection[str],
    columns: Iterable[Column],
    manual: str,
    details: Iterable[str],
    notes: Iterable[str],
) -> str:
    """The page of ``records``. Each part is a list of paragraphs; ``drawn``: names of the files with
    figures; ``columns``: of the first tables; ``manual``: the page of the docs that explains them."""
    suites = sorted({(record.suite["name"], record.suite["version"]) for record in records})
    named = ", ".join(f"{escaped(name)}, version {version}" for name, version in suites)
    parts = [f"# Suite {named}", *tables, *downstream, *embedded(drawn)]
    parts += [_COLUMNS, column_table(columns)]
    parts.append(f"More, and what one may conclude: {manual} in modbench's repository.")
    parts += ["## Details", *details, "### Notes"]
    parts.append("\n".join(f"- {note}" for note in [*notes, *_origin(records)]))
    return "\n\n".join(parts) + "\n"


def before_figures(page: str) -> str:
    """The tables of a page, and the text around them, without pictures."""
    lines = _AFTER_TABLES.split(page, maxsplit=1)[0].rstrip().splitlines()
    return "\n".join(line for line in lines if not line.startswith("!["))


def _origin(records: Sequence[Result]) -> Iterable[str]:
    """Notes on the machines and the code that made ``records``."""
    machines = {machine_in_words(record.environment, MACHINE) for record in records if record.metrics}
    yield from (f"Machine: {escaped(machine)}." for machine in sorted(machines))
    yield from (f"Code: {escaped(code)}." for code in sorted({made_by(one.code) for one in records}))
    routers = [record.run.router for record in records]
    plugins = {(of.name, of.plugin_sha256) for of in routers if of.plugin_sha256}
    for name, sha in sorted(plugins):
        yield f"Plugin: {escaped(name)}, code with sha256 {escaped(sha)}."
