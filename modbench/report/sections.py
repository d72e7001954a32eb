"""A page as a list of parts, and the structure that the pages leaderboard.md share: tables, downstream
tasks, figures, columns, details."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from modbench.records.result import Result
from modbench.report.leaderboard.columns import Column, column_table
from modbench.report.table import Table, escaped
from modbench.report.timing.values import HARDWARE, machine_in_words


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


#: Parts of the environment that must be equal for wall times or memory to be compared.
MACHINE = (*HARDWARE, "dtype", "deterministic", "world_size")
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


_LOSS = "Held-out loss against model size, a curve per scheme at equal training FLOPs"
_MARKS = (
    "A point is the mean of the seeds of one size, its bar their range; the line is the parabola. A "
    "hollow star is the optimum, its bars the 95 % intervals of size and loss. Hollow points joined by"
    " dashes: no interior optimum. Triangles at the upper edge: points above it."
)
#: By name, in the order of a page. The section on downstream tasks shows its own figure.
CAPTIONS = {
    "isoflop_curves": f"{_LOSS}. {_MARKS}",
    "isoflop_depths": (
        f"{_LOSS}: a panel per depth, a row per budget. {_MARKS} The last panel has the lowest of the "
        "parabolas with an interior optimum, and the best optimum with its number of layers; its "
        "interval is that of a choice among the depths."
    ),
    "loss_at_optimum": (
        "Loss of each scheme at its optimal size against the training budget, with 95 % intervals. "
        "Dotted: the dense model's loss at its optimum by one fit of all budgets (the surface of "
        "Hoffmann et al. 2022)."
    ),
    "speed_up": (
        "Speed-up over the dense model at equal loss; 1 (dotted) is no speed-up. Filled: in training "
        "FLOPs; hollow, if steps were timed: in seconds of them. Lines are 95 % intervals, which don't "
        "contain the spread of the times. An open arrow starts at a bound: the value is at least, or at "
        "most, that. It also stands at a marker if the interval is open on that side."
    ),
    "normalised_loss": (
        "Loss and nominal forward FLOPs per token, both over those of the dense optimum of the same "
        "budget, means of seeds: points in the grey area are better and cheaper than it. Hollow "
        "points: no interior optimum."
    ),
    "learning_rates": (
        "Loss of the learning rates tried for each scheme, one seed at the middle size and budget; the"
        " chosen rate is filled."
    ),
    "loss_vs_training_flops": (
        "Held-out loss during training against the training FLOPs spent; with several seeds, their "
        "mean at equal FLOPs and a band from the least to the greatest. Dotted: unigram loss. The loss"
        " is taken on fewer tokens than that of the table."
    ),
    "loss_vs_forward_flops": (
        "Final held-out loss against realised forward FLOPs per token, as in the table: points at the "
        "lower left are better and cheaper. Bars: 95 % t-intervals over seeds. Of several sizes, "
        "joined by a line, the best is filled."
    ),
    "routing": (
        "Share of held-out tokens that each depth-routed layer selects, by position in the sequence, "
        "of the first seed: solid under the causal rule, dotted under the training rule."
    ),
    "expert_load": (
        "Load of each layer's experts on held-out text, busiest first, over an even load (1, dotted), "
        "of the first seed. Dashed: no-op experts, ranked among themselves."
    ),
    "routing_pattern": (
        "Tokens of one held-out passage that each layer processes under the causal rule, one run per "
        "scheme, layer 0 at the bottom. Blue: selected, pale: skipped, thin grey rows: layers that "
        "process all tokens. A dot: the training rule decides otherwise. In layers of experts among "
        "which every token chooses, the shade is the token's first expert. Where experts choose their "
        "tokens, a token has no first expert, so such schemes are not drawn."
    ),
    "router_weights": (
        "Router weights of all held-out tokens in depth-routed layers under the causal rule: blue are "
        "tokens that are selected, grey the others; the dotted outline are those that the training "
        "rule selects. The axis leaves out 0.5 % of the tokens at either end."
    ),
    "realised_efficiency": (
        "Speed-up over the dense model that is achieved, over the one that FLOPs let expect (1, "
        "dotted). The dense time is that of the same shape, or interpolated between the next two "
        "widths. Filled: stable times; hollow: a time is unstable. A thin stroke: the machine was "
        "loaded or the GPU throttled during a measurement, so it is no result."
    ),
}
