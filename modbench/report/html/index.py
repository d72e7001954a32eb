"""index.html of a results folder: the suites, by what their own pages say of them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from modbench.errors import UserError
from modbench.records.line import check
from modbench.records.store import recorded_suites, write_files
from modbench.report.html.template import render

#: Name of a suite's page, and of the index over suites.
PAGE = "index.html"
_MADE_BY = '<meta name="generator" content="modbench report --html">'
_SUMMARY = re.compile(r'<script type="application/json" id="summary">(.*?)</script>', re.DOTALL)


class _Facts(BaseModel):
    """Facts of a summary that the index shows (`modbench.report.html.page`)."""

    model_config = ConfigDict(strict=True)

    name: str
    version: int | None
    schemes: int
    budgets: list[str]
    machines: list[str]
    finished: str


_FACTS = TypeAdapter(_Facts)


def has_page(folder: Path) -> bool:
    """Return True if ``folder`` has a page that this module's package made."""
    path = folder / PAGE
    return path.is_file() and _MADE_BY in path.read_text(encoding="utf-8", errors="replace")[:4000]


def write_index(results: Path, say: Callable[[str], object]) -> list[Path]:
    """Write the index of ``results``; return its path. ``say``: called with a sentence, and nothing is
    written, if another program's file has its name."""
    path = results / PAGE
    if path.exists() and not has_page(results):
        say(f"{path}: modbench did not write it, so it is left as it is; there is no index over suites")
        return []
    write_files(results, {PAGE: index_page(results)})
    return [path]


def index_page(results: Path) -> bytes:
    """The index over the suites of ``results``: those with a page, then those with records only. A suite
    without a page isn't read, which may take long."""
    summaries = {name: _summary(results / name) for name in recorded_suites(results)}
    suites = [summary for summary in summaries.values() if summary]
    without = [name for name, summary in summaries.items() if not summary]
    return render("index", suites=suites, without=without)


def _summary(folder: Path) -> dict[str, Any] | None:
    """The facts that the page of ``folder`` states; None without a page. Raises UserError: they are
    damaged."""
    if not has_page(folder):
        return None
    match = _SUMMARY.search((folder / PAGE).read_text(encoding="utf-8", errors="replace"))
    if match is None:
        return None
    try:
        summary: dict[str, Any] = json.loads(match[1])
        check("summary", summary, _FACTS)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{folder / PAGE}: its summary is damaged ({error}); write it again with "
            f"`modbench report {folder.name} --html`"
        ) from error
    return summary | {"folder": folder.name}
