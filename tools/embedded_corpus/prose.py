"""Reduces marked-up text to plain English: ASCII punctuation, and the prose of reStructuredText.

Pure string operations, so that the same archive gives the same bytes on every machine.
"""

import re

_ASCII = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        "\u2013": "-",
        "\u2014": "--",
        "\u2026": "...",
        "\u00a0": " ",
        "\ufeff": "",
    }
)


def tidy(text: str) -> str:
    """``text`` with ASCII quotes and dashes, single spaces, and at most one blank line in a row."""
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.translate(_ASCII).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


#: Directives whose indented body is prose; others are dropped. Their argument is prose for `_TITLED`
#: only; elsewhere it is a signature or a version number and is dropped.
_TITLED = re.compile("admonition|rubric|note|warning|tip|hint|important|caution|seealso")
_UNSIGNED = re.compile("versionadded|versionchanged|deprecated|glossary")
_SIGNED = re.compile(
    "describe|class|method|attribute|function|exception|data|classmethod|staticmethod|object|setting|"
    "envvar|option|django-admin|django-admin-option|fieldlookup|templatefilter|templatetag"
)
_DIRECTIVE = re.compile(r"\.\. ([\w-]+)::(?:\s+(.*))?$")
_ADORNMENT = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}$")
_TABLE_RULE = re.compile(r"(\+[-=+]+\+|=+( +=+)+)$")
_SENTENCE_END = re.compile(r"[.!?][)\"']*$")
_BULLET = re.compile(r"([*+-]|#\.|\d+\.|\(\d+\)) +")
_DOCTEST_OR_FIELD = re.compile(r">>> |:[\w -]+:(\s|$)")

_INLINE = (
    (re.compile(r":[\w:+-]+:`\s*([^`<]*?)\s*<[^`>]+>`"), r"\1"),  # :role:`title <target>`
    (re.compile(r":[\w:+-]+:`~(?:[^`]*\.)?([^`]*)`"), r"\1"),  # :role:`~module.name`
    (re.compile(r":[\w:+-]+:`!*([^`]+)`"), r"\1"),  # :role:`target`
    (re.compile(r"``(.+?)``"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*\s](?:[^*]*[^*\s])?)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])"), r"\1"),
    (re.compile(r"\|(\w+)\|"), r"\1"),
    (re.compile(r"(?<=[a-z])_(?=[\s.,;:)]|$)"), ""),
    (re.compile(r"\\(.)"), r"\1"),
)


def _inline(paragraph: str) -> str:
    for pattern, replacement in _INLINE:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _body_end(lines: list[str], start: int, indent: int) -> int:
    """The first line at or after ``start`` that is not blank and is indented by ``indent`` or less."""
    end = start
    while end < len(lines) and (not lines[end] or _indent(lines[end]) > indent):
        end += 1
    return end


def _paragraphs(lines: list[str]) -> list[str]:
    """The prose paragraphs of a reStructuredText body, in order, with those of directives that hold
    prose."""
    found: list[str] = []
    current: list[str] = []

    def close() -> None:
        if current:
            found.append(_inline(" ".join(current)))
            current.clear()

    at = 0
    while at < len(lines):
        line, indent = lines[at].strip(), _indent(lines[at])
        if not line:
            close()
            at += 1
        elif line.startswith(".. ") or line == "..":
            close()
            end = _body_end(lines, at + 1, indent)
            found += _directive(line, lines[at + 1 : end])
            at = end
        elif _TABLE_RULE.match(line):
            close()
            at = _table_end(lines, at)
        elif _DOCTEST_OR_FIELD.match(line):
            close()
            while at < len(lines) and lines[at]:
                at += 1
        elif _ADORNMENT.match(line):
            close()
            at += 1
        elif line.endswith("::"):
            current.append(line[:-1] if line != "::" else "")
            close()
            at = _body_end(lines, at + 1, indent)
        else:
            if _BULLET.match(line):
                close()
            current.append(line)
            at += 1
    close()
    return [paragraph for paragraph in found if paragraph.strip()]


def _directive(line: str, body: list[str]) -> list[str]:
    match = _DIRECTIVE.match(line)
    name, argument = (match[1].lower(), match[2] or "") if match else ("", "")
    if _TITLED.fullmatch(name):
        return [_inline(argument), *_paragraphs(body)]
    if _SIGNED.fullmatch(name) and "" in body:
        # Lines up to the first blank one continue the argument: more signatures, or options.
        return _paragraphs(body[body.index("") :])
    return _paragraphs(body) if _UNSIGNED.fullmatch(name) else []


def _table_end(lines: list[str], at: int) -> int:
    """The line after the table that starts at ``at``: no text follows its last rule."""
    for end in range(at + 1, len(lines)):
        last = end + 1 == len(lines) or not lines[end + 1]
        if last and _TABLE_RULE.match(lines[end].strip()):
            return end + 1
    return at + 1


def reduce_rst(text: str) -> str:
    """The prose of a reStructuredText page: its full sentences, one paragraph per block of text.

    Code, tables, titles, signatures and markup are dropped; the text of roles, literals and notes stays.
    """
    lines = [line.rstrip() for line in text.translate(_ASCII).expandtabs(8).splitlines()]
    # Not titles, names and introductions to dropped code.
    sentences = (p for p in _paragraphs(lines) if len(p.split()) >= 6 and _SENTENCE_END.search(p))
    return tidy("\n\n".join(sentences))
