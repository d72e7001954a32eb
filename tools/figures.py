"""Draws the figures that explain ideas, in docs/, as SVG for light and dark pages:
``python tools/figures.py``; ``--check`` writes nothing. Eight tokens stand in columns; colours mean the
same in all figures."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
#: Classes of shapes; a dark page has other colours of text, lines and boxes.
STYLE = """text{font:14px sans-serif;fill:#222}.s{font-size:12px}.b{font-weight:bold}
.m{text-anchor:middle}.l{stroke:#555;fill:none;stroke-width:1.5}.d{stroke-dasharray:5 4}
.box{fill:#eef1f5;stroke:#8a93a0}.off{fill:none;stroke:#8a93a0}.on,.a{fill:#4477aa}.e{fill:#ee6677}
.g{fill:#228833}.y{fill:#ccbb44}.red{stroke:#cc3311;fill:none;stroke-width:2}.w{fill:#fff}
.ca{stroke:#4477aa;fill:none;stroke-width:2.5}.cb{stroke:#ee6677;fill:none;stroke-width:2.5}
@media(prefers-color-scheme:dark){text{fill:#ddd}.w{fill:#fff}.l{stroke:#aaa}
.box{fill:#2a2f37;stroke:#77808c}}"""
TOKENS = ("The", "cat", "sat", "on", "the", "old", "red", "mat")
#: The tokens that a depth router takes, and the expert of each token, in all figures.
TAKEN, EXPERT = (1, 7), "aegyaeyg"


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def box(x: float, y: float, wide: float, high: float, kind: str = "box") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="4" class="{kind}"/>'


def line(*points: tuple[float, float], kind: str = "l", arrow: bool = False) -> str:
    end = ' marker-end="url(#t)"' if arrow else ""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{path}" class="{kind}"{end}/>'


def cells(x: float, y: float, kinds: Iterator[str] | tuple[str, ...], side: float = 30) -> Iterator[str]:
    for number, kind in enumerate(kinds):
        yield box(x + number * (side + 8), y, side, side, kind)


def labelled(x: float, y: float, wide: float, words: str, high: float = 34) -> str:
    return box(x, y, wide, high) + text(x + wide / 2, y + high / 2 + 5, words, "m")


def four_schemes() -> Iterator[str]:
    yield from (text(195 + 38 * n, 24, word, "s m") for n, word in enumerate(TOKENS))
    rows = {
        "dense": ("a" for _ in TOKENS),
        "experts": iter(EXPERT),
        "MoD": ("a" if n in TAKEN else "off" for n in range(8)),
        "staged MoDE": (EXPERT[n] if n in TAKEN else "off" for n in range(8)),
    }
    said = ("every token, one MLP", "every token, its expert", "two tokens, six pass over", "both")
    for number, ((name, kinds), words) in enumerate(zip(rows.items(), said, strict=True)):
        y = 38 + 46 * number
        yield text(10, y + 20, name, "b")
        yield from cells(180, y, kinds)
        yield text(500, y + 20, words, "s")


def mod_block() -> Iterator[str]:
    steps = ("scores", "top k", "gather", "attention + MLP", "times gate", "scatter-add")
    x = 60.0
    yield text(8, 62, "x", "b")
    yield line((22, 57), (56, 57), arrow=True)
    for step in steps:
        wide = 9 * len(step) + 16
        yield labelled(x, 40, wide, step)
        yield line((x + wide, 57), (x + wide + 22, 57), arrow=True)
        x += wide + 26
    yield line((36, 57), (36, 12), (x - 30, 12), (x - 30, 36), kind="l d", arrow=True)
    yield text(250, 28, "tokens that are not taken keep their value", "s")
    yield text(60, 116, "KV cache of this block:", "s")
    yield from cells(210, 98, tuple("on" if n in TAKEN else "off" for n in range(8)), 24)
    yield text(480, 116, "two of eight slots filled", "s")


def causal_rule() -> Iterator[str]:
    scores = (0.2, 0.6, 0.8, 0.1, 0.4, 0.3, 0.5, 0.2)
    for left, title, later in (
        (10, "top 2 of the sequence", True),
        (370, "threshold: score above 0.55", False),
    ):
        yield text(left, 20, title, "b")
        for row, count in enumerate((8, 9)):
            y, given = 44 + 96 * row, [*scores, 0.9][:count]
            top = sorted(given, reverse=True)[:2]
            yield text(left, y, "eight tokens" if not row else "a ninth arrives", "s")
            for number, score in enumerate(given):
                taken = score in top if later else score > 0.55
                x = left + 36 * number
                yield box(x, y + 8, 30, 30, "on" if taken else "off")
                yield text(x + 15, y + 28, f"{score:g}", "s m" + (" w" if taken else ""))
            if row and later:
                yield box(left + 33, y + 5, 36, 36, "red")
                yield text(left, y + 62, "0.6 is out: the future changed the past", "s")
            elif row:
                yield text(left, y + 62, "no earlier choice moves", "s")


def one_size() -> Iterator[str]:
    yield line((50, 20), (50, 220), (520, 220))
    yield text(60, 30, "validation loss", "s")
    yield text(400, 240, "model size, at one budget", "s")

    def curve(middle: float, low: float) -> list[tuple[float, float]]:
        return [(x, low - 0.0028 * (x - middle) ** 2) for x in range(80, 500, 10)]

    for name, kind, middle, low in (("A", "ca", 190, 150.0), ("B", "cb", 330, 185.0)):
        points = [(x, 2 * low - y) for x, y in curve(middle, low)]
        points = [(x, 205 - (y - low) - (190 - low)) for x, y in points]
        yield line(*((x, y) for x, y in points if y > 25), kind=kind)
        best = max(points, key=lambda point: point[1])
        star = [
            (best[0] + r * math.sin(math.pi * n / 5), best[1] - r * math.cos(math.pi * n / 5))
            for n in range(10)
            for r in [9 if n % 2 == 0 else 4]
        ]
        yield line(*star, star[0], kind=kind)
        yield text(best[0] + 14, best[1] + 18, name, "b")
    yield line((200, 40), (200, 220), kind="l d")
    yield text(206, 52, "one size: A is ahead", "s")


def pipeline() -> Iterator[str]:
    parts = (
        ("suite", "suites/NAME.toml", "modbench plan"),
        ("jobs", "sweep/wanted.py", "modbench run"),
        ("worker", "sweep/work.py", "trains, measures"),
        ("records", "records/*.jsonl", "modbench verify"),
        ("frames", "report/suite.py", "modbench.results"),
        ("page", "leaderboard.md", "modbench report"),
    )
    for number, (name, file, command) in enumerate(parts):
        x = 10 + 128 * number
        yield labelled(x, 30, 96, name)
        yield text(x + 48, 20, command, "s m")
        yield text(x + 48, 82, file, "s m")
        if number + 1 < len(parts):
            yield line((x + 96, 47), (x + 122, 47), arrow=True)
    yield line((442, 94), (442, 108), (186, 108), (186, 94), arrow=True)
    yield text(200, 124, "what is recorded is not done again", "s")


def base_class() -> Iterator[str]:
    questions = (
        ("Do tokens skip whole blocks?", "DepthRouter"),
        ("Does each token go to some of several experts?", "ExpertRouter"),
        ("Is there a module (B, T, D) to (B, T, D)?", "ModuleRouter"),
    )
    for number, (question, answer) in enumerate(questions):
        y = 10 + 62 * number
        yield labelled(10, y, 390, question)
        yield line((400, y + 17), (470, y + 17), arrow=True)
        yield text(422, y + 12, "yes", "s")
        yield labelled(474, y, 140, answer)
        yield line((205, y + 34), (205, y + 58), arrow=True)
        yield text(212, y + 52, "no", "s")
    yield labelled(135, 196, 140, "Router")


def budget_buys() -> Iterator[str]:
    from modbench.ledger import Workload
    from modbench.model.config import ModelConfig
    from modbench.routing.build import meta_decoder

    shape, budget = ModelConfig(vocabulary=512, width=128, layers=4, heads=4), 1e12
    step = Workload.uniform(1, 256, "train")
    names = {
        "vanilla": "dense",
        "token_choice": "token choice",
        "mod:half": "MoD, half of the tokens",
        "mod": "MoD, an eighth",
    }
    tokens = {}
    for name in names:
        router, _, preset = name.partition(":")
        options = {"capacity": 0.5} if preset else {}
        tokens[name] = budget / meta_decoder(router, options, shape).ledger(step).total("model") * 256
    most = max(tokens.values())
    for number, (name, words) in enumerate(names.items()):
        y = 12 + 34 * number
        yield text(10, y + 17, words)
        yield box(190, y, 330 * tokens[name] / most, 24, "on")
        yield text(200 + 330 * tokens[name] / most, y + 17, f"{tokens[name] / 1e6:.2f} M tokens", "s")
    yield text(
        10,
        166,
        "1e12 training FLOPs; width 128, 4 layers, sequences of 256 tokens, nominal routing",
        "s",
    )


#: Size and content of each figure.
FIGURES: dict[str, tuple[int, int, Callable[[], Iterator[str]]]] = {
    "four_schemes": (680, 225, four_schemes),
    "mod_block": (820, 135, mod_block),
    "causal_rule": (700, 215, causal_rule),
    "one_size": (560, 250, one_size),
    "pipeline": (770, 135, pipeline),
    "base_class": (630, 240, base_class),
    "budget_buys": (640, 175, budget_buys),
}
ARROW = (
    '<defs><marker id="t" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0,0L8,4L0,8z" fill="#777"/></marker></defs>'
)


def drawn(name: str) -> str:
    wide, high, content = FIGURES[name]
    size = f'width="{wide}" height="{high}" viewBox="0 0 {wide} {high}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{ARROW}'
    return "\n".join([head, *content(), "</svg>"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the figures of docs/.")
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    only_check, code = parser.parse_args().check, 0
    for name in FIGURES:
        file = DOCS / f"{name}.svg"
        if not only_check:
            file.write_text(drawn(name))
        elif not file.exists() or file.read_text() != drawn(name):
            print(f"docs/{name}.svg differs; run python tools/figures.py", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
