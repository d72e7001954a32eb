"""SVG figures of matplotlib as parts of a page: no style attributes, which the page's policy forbids,
identifiers that differ between figures, glyphs defined once per page, short numbers."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from html import escape
from itertools import count

from markupsafe import Markup

#: Figures whose schemes can be hidden: artists have the gid ``scheme-NUMBER-...``, with the place of
#: their scheme in alphabetical order.
SCHEME = re.compile(r"scheme-(\d+)-")
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_GLYPH = re.compile(r"scale\(0\.015625\)$")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SHIFT = re.compile(r"translate\((\S+) (\S+)\)$")
_SPACE = re.compile(r"\s*([A-Za-z])\s*")
_LEFT_OUT = {"metadata", "style", "title"}
_PIXELS = 4 / 3  #: of a point


@dataclass
class Glyphs:
    """Glyphs of all figures of a page, by their outline."""

    names: dict[str, str] = field(default_factory=dict)

    def name(self, outline: str) -> str:
        return self.names.setdefault(outline, f"g{len(self.names)}")

    def definitions(self) -> Markup:
        """A hidden figure that holds the outlines."""
        paths = (
            f'<path id="{name}" transform="scale(.015625)" d="{outline}"/>\n'
            for outline, name in self.names.items()
        )
        svg = '<svg class="glyphs" width="0" height="0" aria-hidden="true"><defs>\n{}</defs></svg>'
        return Markup(svg.format("".join(paths)))


@dataclass(frozen=True)
class Drawing:
    """A figure: its markup, its width in pixels, and the numbers of the schemes to hide."""

    svg: Markup
    width: int
    schemes: tuple[int, ...]


def inlined(svg: bytes, title: str, prefix: str, glyphs: Glyphs) -> Drawing:
    """The figure ``svg`` for a page. ``title``: its name for screen readers; ``prefix``: of its
    identifiers; ``glyphs``: of the page, to which those of the figure are added."""
    root = ElementTree.fromstring(svg)
    writer = _Writer(root, prefix, glyphs)
    body = "".join(map(writer.element, root))
    view = root.get("viewBox", "0 0 1 1")
    width = round(float(view.split()[2]) * _PIXELS)
    head = (
        f'<svg viewBox="{_rounded(view, 1)}" role="img" aria-labelledby="{prefix}title" '
        f'stroke-linejoin="round" stroke-linecap="butt" width="{width}">'
        f'<title id="{prefix}title">{escape(title)}</title>\n'
    )
    return Drawing(Markup(f"{head}{body}</svg>"), width, tuple(sorted(writer.schemes)))


class _Writer:
    def __init__(self, root: ElementTree.Element, prefix: str, glyphs: Glyphs) -> None:
        self.glyphs = glyphs
        self.schemes: set[int] = set()
        numbers = count()
        self.names: dict[str, str] = {}
        for element in root.iter():
            name, tag = element.get("id"), _tag(element)
            if name is None or tag == "g":
                continue
            if tag == "path" and _GLYPH.match(element.get("transform", "")):
                self.names[name] = glyphs.name(_path(element.get("d", ""), 0))
            else:
                self.names[name] = f"{prefix}{next(numbers)}"

    def element(self, element: ElementTree.Element) -> str:
        """The markup of ``element``; that of its content alone if it says nothing itself."""
        tag = _tag(element)
        if tag in _LEFT_OUT or (tag == "path" and _GLYPH.match(element.get("transform", ""))):
            return ""
        inside = "".join(map(self.element, element))
        attributes = self.attributes(element, tag)
        if tag in ("g", "defs") and not inside:
            return ""
        if tag == "g" and not attributes:
            return inside
        stated = "".join(f' {name}="{value}"' for name, value in attributes.items())
        return f"<{tag}{stated}>{inside}</{tag}>\n" if inside else f"<{tag}{stated}/>\n"

    def attributes(self, element: ElementTree.Element, tag: str) -> dict[str, str]:
        made: dict[str, str] = {}
        for full, value in element.items():
            name = full.rpartition("}")[2]
            if name == "id":
                if tag != "g":
                    made["id"] = self.names[value]
                elif of_scheme := SCHEME.match(value):
                    number = int(of_scheme[1])
                    self.schemes.add(number)
                    made["class"] = f"s{number}"
            elif name == "style":
                for declaration in value.split(";"):
                    of, _, to = declaration.partition(":")
                    if to:
                        made[of.strip()] = self.referred(_rounded(to.strip(), 2))
            elif name == "href":
                made["href"] = f"#{self.names[value[1:]]}"
            elif name == "d":
                made["d"] = _path(value, 2 if "id" in element.attrib else 1)
            elif name == "transform":
                made |= _transform(value, tag)
            elif name == "type":
                continue
            else:
                made[name] = self.referred(_rounded(value, 1))
        return {name: escape(value) for name, value in made.items()}

    def referred(self, value: str) -> str:
        return _REFERENCE.sub(lambda match: f"url(#{self.names[match[1]]})", value)


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _transform(value: str, tag: str) -> dict[str, str]:
    """``value``; of a letter of a text, its place, which is in hundredths of the font's size."""
    if tag == "use" and (shift := _SHIFT.match(value)):
        places = {"x": _rounded(shift[1], 0), "y": _rounded(shift[2], 0)}
        return {name: place for name, place in places.items() if place != "0"}
    places_of = {"translate": 1, "rotate": 2, "scale": 6}
    parts = re.findall(r"(\w+)\(([^)]*)\)", value)
    return {"transform": " ".join(f"{n}({_rounded(v, places_of.get(n, 6))})" for n, v in parts)}


def _path(value: str, places: int) -> str:
    return _SPACE.sub(r"\1", _rounded(value, places)).strip()


def _rounded(text: str, places: int) -> str:
    """``text`` with its numbers rounded to ``places`` decimals, without zeros at their ends."""

    def number(match: re.Match[str]) -> str:
        short = f"{float(match[0]):z.{places}f}"
        return (short.rstrip("0").rstrip(".") if "." in short else short) or "0"

    return _NUMBER.sub(number, text)
