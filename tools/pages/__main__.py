"""Writes what README.md and docs/ take from code and committed results: ``python tools/pages``.

``--check`` writes nothing and exits with 1 if a page differs or a sentence claims what no result says.
Names choose parts: ``python tools/pages keys``. The audit takes minutes. Text outside the markers
``<!-- NAME -->`` and ``<!-- end -->`` is written by hand."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pages import audit, conventions, keys, results

#: What fills the blocks of each part.
PARTS: dict[str, Mapping[str, Callable[[], str]]] = {
    "keys": keys.TEXTS,
    "results": results.TEXTS,
    "conventions": {"errors": lambda: "\n".join(conventions.error_table())},
    "audit": {"audits": audit.audit_table},
}


def made(parts: list[str]) -> Iterator[tuple[Path, str]]:
    """Each page with what it should be."""
    texts = {name: of for part in parts for name, of in PARTS[part].items()}
    for page in (keys.ROOT / "README.md", *sorted((keys.ROOT / "docs").glob("*.md"))):
        yield page, keys.filled(page.read_text(), texts)
    if "audit" in parts:
        yield audit.BUGS, "\n".join(audit.bugs_page()) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[*PARTS])
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    asked, code = parser.parse_args(), 0
    for page, text in made(asked.parts):
        name = page.relative_to(keys.ROOT)
        for sentence in results.wrong_claims(text) if "results" in asked.parts else ():
            print(f"{name}: {sentence}", file=sys.stderr)
            code = 1
        if text != page.read_text():
            if asked.check:
                print(f"{name} differs; run python tools/pages", file=sys.stderr)
                code = 1
            else:
                page.write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
