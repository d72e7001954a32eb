"""Templates of pages, and their policy: a page runs its own script and style, and loads nothing."""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HERE = Path(__file__).parent
#: Files of the style and of the script of each kind of page.
STYLES = {"suite": ("vendor/uPlot.min.css", "page.css"), "index": ("page.css",)}
_UPLOT = "vendor/uPlot.iife.min.js"
_TABLES = ("vendor/sortable.min.js", "tables.js")
SCRIPTS = {"suite": (*_TABLES, _UPLOT, "chart.js", "passage.js"), "index": _TABLES}


def render(kind: str, **values: Any) -> bytes:
    """The page of ``kind``, suite or index, with ``values``."""
    script, style = _joined(SCRIPTS[kind]), _joined(STYLES[kind])
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = _environment().get_template(f"{kind}.html.j2")
    page = template.render(script=Markup(script), style=Markup(style), policy=policy, **values)
    return page.encode(errors="replace")  # half of a surrogate pair in a text of a record


def data(value: Any) -> Markup:
    """``value`` as JSON inside a script element, which no text in it can end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@cache
def _joined(names: Sequence[str]) -> str:
    texts = [(_HERE / "assets" / name).read_text(encoding="utf-8").strip() for name in names]
    if _UPLOT in names:  # the licence asks for its text in all copies
        licence = (_HERE / "assets" / "vendor" / "uPlot.LICENSE.txt").read_text(encoding="utf-8")
        texts.insert(names.index(_UPLOT), f"/*! uPlot\n{licence.strip()} */")
    joined = "\n".join(texts)
    return f"\n{joined}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
