"""Builds the pages of this folder as a site, with Sphinx, MyST and Furo: ``nox -s docs``.

The pages stay plain Markdown, since GitHub and ``modbench docs`` show them, too. The hooks below make
their links work in the site. ``-D repository=URL`` states where the files of the repository are shown.
"""

import io
import json
import re
import shutil
from contextlib import chdir, redirect_stdout
from pathlib import Path
from textwrap import indent

from docutils import nodes
from matplotlib import pyplot
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

import modbench

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"

project = "modbench"
release = modbench.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]

myst_heading_anchors = 4  # the anchors that GitHub gives to headings
#: Literal and link in one: docstrings write names as `name`, as Markdown does.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"modbench {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False


def link_to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn links to files outside docs/ into links to the repository; without its address, into text."""

    def in_site(link: re.Match[str]) -> str:
        text, path = link.groups()
        return f"[{text}]({app.config.repository}/{path})" if app.config.repository else text

    source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\(\.\./([^)]*)\)", in_site, source[0])


def list_suite_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Add a link to each page of `suite_pages` to the page of that name."""
    if page == "suite_pages":
        links = [f"- `{html.parent.name} <{html.relative_to(ROOT)}>`__" for html in suite_pages()]
        source[0] += "\n".join(links or ["No suite has such a page yet."]) + "\n"


def show_notebook(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the cells of the notebook of examples/, run here, with what they print and draw."""
    if page != "notebook":
        return
    names: dict[str, object] = {}
    folder = Path(app.outdir, "_images")
    folder.mkdir(parents=True, exist_ok=True)
    notebook = json.loads((ROOT / "examples" / "figures_of_your_own.ipynb").read_text(encoding="utf-8"))
    pyplot.switch_backend("agg")
    for number, cell in enumerate(notebook["cells"][1:]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source[0] += f"\n{text}\n"
            continue
        printed = io.StringIO()
        with chdir(ROOT), redirect_stdout(printed):
            exec(text, names)
        source[0] += f"\n.. code-block:: python\n\n{indent(text, '   ')}\n"
        if pyplot.get_fignums():
            pyplot.savefig(folder / f"notebook_{number}.svg")
            pyplot.close("all")
            image = f'<img src="_images/notebook_{number}.svg" alt="what the cell draws">'
            source[0] += f"\n.. raw:: html\n\n   {image}\n"
        if said := printed.getvalue():
            source[0] += f"\n.. code-block:: text\n\n{indent(said, '   ')}\n"


def outdated(*_: object) -> list[str]:
    """Name the pages that are read again in each build: they change without their source."""
    return ["suite_pages", "notebook"]


def suite_pages() -> list[Path]:
    """The HTML pages that ``modbench report --html`` wrote; the session runs it first."""
    return sorted(RESULTS.glob("*/index.html"))


def copy_suite_pages(app: Sphinx, failure: Exception | None) -> None:
    """Copy `suite_pages`, their index and the files that they link to into the site."""
    if failure:
        return
    for html in (*RESULTS.glob("index.html"), *suite_pages()):
        links = re.findall(r'href="([^"#:?]+)', html.read_text(encoding="utf-8"))
        for file in (html, *((html.parent / link).resolve() for link in links)):
            if file.is_file() and file.is_relative_to(RESULTS):
                copy = Path(app.outdir) / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def know_named_anchors(app: Sphinx, tree: nodes.document) -> None:
    """Make ``<a id="NAME"></a>`` of a page a target of links, as the anchors of headings are."""
    slugs = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for raw in tree.findall(nodes.raw):
        for name in re.findall(r'<a id="([\w-]+)">', raw.astext()):
            slugs[name] = (raw.line or 0, name, "")


def setup(app: Sphinx) -> None:
    app.add_config_value("repository", "", "env")
    app.add_lexer("csv", TextLexer)
    app.connect("env-get-outdated", outdated)
    app.connect("source-read", link_to_repository)
    app.connect("source-read", list_suite_pages)
    app.connect("source-read", show_notebook)
    app.connect("doctree-read", know_named_anchors, priority=900)  # after MyST has set the others
    app.connect("build-finished", copy_suite_pages)
