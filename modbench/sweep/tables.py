"""The tables of a suite file as typed objects, each checked by itself; pydantic reads them
(`modbench.typed.built`). Imports no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from modbench.analysis.learning_rate import is_geometric
from modbench.data.config import DataConfig
from modbench.errors import UserError
from modbench.measure.config import MeasureConfig
from modbench.plan.family import Family
from modbench.records.names import LABEL, LABEL_WORDS, NAME, at_depth
from modbench.sweep.track import TrackConfig
from modbench.timing.config import TimeConfig
from modbench.train.config import TrainTable
from modbench.typed import Count, Positive, Seed


def check_distinct(**lists: Sequence[int] | None) -> None:
    """Raises UserError: one of ``lists`` is empty, or has an entry twice."""
    for name, values in lists.items():
        if values is not None and not values:
            raise UserError(f"{name} is empty; give it at least one entry")
        if values is not None and len(set(values)) < len(values):
            raise UserError(f"{name} is {list(values)}; an entry appears twice, remove one")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The [suite] table."""

    name: str  #: also the name of its folder in the results folder
    version: int = 1  #: raised when the suite's meaning changes
    description: str = ""  #: one sentence, shown by `modbench list suites`

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(
                f"name is {self.name!r}; it becomes a folder's name: lower-case letters, digits, "
                "'_', '-' and '.', starting with a letter or a digit"
            )


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The [sweep] table: each scheme runs at each budget (training FLOPs) with each seed."""

    budgets: tuple[Count, ...]  #: training FLOPs of a run, convention `model`; 1e13 is an integer here
    seeds: tuple[Seed, ...] = (0,)  #: of the initial weights and of the order of the data
    cell_timeout: Positive = 1800.0  #: seconds without progress after which a run's process is ended
    #: cuda: the suite is made for a GPU, and a machine without one is refused; auto: any machine
    device: Literal["auto", "cuda"] = "auto"

    def __post_init__(self) -> None:
        check_distinct(budgets=self.budgets, seeds=self.seeds)


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """The [keep] table."""

    #: weights that stay after a run was measured, so that more can be measured later: those at its end,
    #: or none
    weights: Literal["end", "none"] = "end"


@dataclass(frozen=True, kw_only=True)
class DepthConfig(Family):
    """The family of shapes of an isoFLOP grid, and its learning rates: the keys of [isoflop] that a
    depth may have for itself. Raises UserError: a field is out of range."""

    learning_rates: tuple[Positive, ...] = (2.5e-3, 5e-3, 1e-2)  #: three or more, by one ratio
    #: seed of the runs that choose and check a rate; None: one that no curve has, from 100
    rate_seed: Seed | None = None
    exponent: float = -0.5  #: the rate of other sizes is proportional to width ** exponent
    refine: bool = True  #: fit the exponent again if it fails its check at the ends of the middle budget

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.learning_rates) < 3 or not is_geometric(self.learning_rates):
            raise UserError(
                f"learning_rates is {list(self.learning_rates)}; it must be three or more that ascend "
                "by one ratio, such as doubled ones"
            )


@dataclass(frozen=True, kw_only=True)
class IsoFlopConfig(DepthConfig):
    """The [isoflop] table of a suite. Raises UserError: a field is out of range."""

    margin: Positive = 0.01  #: difference in nats per token within which two schemes are equivalent
    passes: Positive = 4.0  #: most epochs of the training text
    #: depths: each scheme has a curve over size for each of them; in place of [model] layers
    layers: tuple[Count, ...] | None = None
    #: [isoflop.at.8]: keys of [isoflop] that differ at 8 layers; all but layers, aspect, margin, passes
    at: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_distinct(layers=self.layers)
        aspects = [self.aspect, *(keys.get("aspect") for keys in self.at.values())]
        if self.layers and any(aspects):
            raise UserError("layers and aspect both give the depth; remove one of them")
        if unknown := self.at.keys() - set(map(str, self.layers or ())):
            raise UserError(
                f"at has keys for {min(unknown)} layers, which layers does not list; remove them, or "
                "add that depth to layers"
            )


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A row of the table: a router with options, and its own training settings."""

    #: NAME, or NAME:PRESET; ``options`` override the preset's; of a plugin: with --plugin. With a model
    #: of transformers: it is retrofitted; none: it stays as it is
    router: str
    label: str = ""  #: its name in tables and plots; the router's name if empty
    #: options of the router (`modbench docs routers`)
    options: dict[str, Any] = field(default_factory=dict)
    #: keys of [model] that differ for this scheme; or a model of transformers, { hf = FOLDER or FILE }
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)  #: keys of [train] that differ for this scheme
    seeds: tuple[Seed, ...] | None = None  #: in place of [sweep] seeds; None: those. Not with [isoflop]
    #: overrides that of [isoflop]; with [isoflop] layers also by depth, as { 4 = 30.0, 8 = 16.0 }
    tokens_per_parameter: Positive | dict[str, Positive] | None = None
    layers: tuple[int, ...] | None = None  #: those of [isoflop] layers that it has; None: all

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.router)
        check_distinct(seeds=self.seeds)
        if not LABEL.fullmatch(self.router):  # records of other routers are refused
            raise UserError(f"router is {self.router!r}; it must be {LABEL_WORDS}")

    @property
    def depth(self) -> int | None:
        """The depth of its curves, once the suite is `at_depths`; None: the suite has one depth."""
        return self.layers[0] if self.layers else None

    @property
    def name(self) -> str:
        """Its label, with its depth if the suite has several."""
        return at_depth(self.label, self.depth)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One difference: the loss of row ``a`` minus that of row ``b``."""

    a: str  #: a row: a scheme's label; with [[shapes]] LABEL/SIZE
    b: str  #: the row that is subtracted
    #: a secondary comparison has a correction of its own for the number of comparisons (Holm)
    role: Literal["primary", "secondary"] = "primary"
    #: difference in nats per token within which the two are equivalent; None: not tested
    margin: Positive | None = None
    budget: int | None = None  #: one of [sweep] budgets; None: each of them
    depth: int | None = None  #: with [isoflop] layers, the depth of both; None: each at its best depth


def stated_comparisons(pairs: Sequence[Comparison], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """The ``pairs`` at each budget, as the record of a suite states them."""
    fields = [
        asdict(pair) | {"budget": budget}
        for pair in pairs
        for budget in ([pair.budget] if pair.budget else budgets)
    ]
    return [{key: value for key, value in pair.items() if value is not None} for pair in fields]


@dataclass(frozen=True, kw_only=True)
class SuiteFile:
    """The tables of a suite file. What [model], [[shapes]] and [[schemes]] may state depends on each
    other and on [data]: `modbench.sweep.suite` checks them."""

    suite: Header
    model: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainTable = field(default_factory=TrainTable)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    time: TimeConfig = field(default_factory=TimeConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    isoflop: IsoFlopConfig | None = None
    sweep: Axes
    shapes: tuple[dict[str, Any], ...] = ()
    schemes: tuple[dict[str, Any], ...]
    compare: tuple[Comparison, ...] = ()
