"""Suite files: strict TOML that states schemes, shapes, budgets and measurements. Imports no torch."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from modbench.data.config import DataConfig
from modbench.data.tokenizer import with_tokenizer
from modbench.errors import UserError, is_file, known_names
from modbench.hf.config import hub_keys, hub_of, refuse_sizes
from modbench.measure.config import MeasureConfig
from modbench.model.config import ModelConfig
from modbench.model.shape import TRANSFORMERS, HubConfig, Shape
from modbench.records.names import LABEL, LABEL_WORDS, at_depth
from modbench.shipped import shipped_suites
from modbench.sweep.isoflop import IsoFlopConfig
from modbench.sweep.tables import (
    Axes,
    Comparison,
    Header,
    KeepConfig,
    check_comparisons,
    check_schedule,
    check_seeds,
)
from modbench.sweep.track import TrackConfig
from modbench.timing.config import TimeConfig
from modbench.train.config import TrainTable
from modbench.typed import built, checked, checked_fields

#: Keys of [isoflop] that are the same at all depths.
_OF_ALL_DEPTHS = ("layers", "at", "aspect", "margin", "passes")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A row of the table: a router with options, and its own training settings."""

    #: NAME, or NAME:PRESET; ``options`` override the preset's; of a plugin: with --plugin. With a model
    #: of transformers: it is retrofitted; none: it stays as it is
    router: str
    label: str = ""  #: its name in tables and plots; the router's name if empty
    options: dict[str, Any] = field(
        default_factory=dict
    )  #: options of the router (`modbench docs routers`)
    #: keys of [model] that differ for this scheme; or a model of transformers, { hf = FOLDER or FILE }
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)  #: keys of [train] that differ for this scheme
    seeds: tuple[int, ...] | None = None  #: in place of [sweep] seeds; None: those. Not with [isoflop]
    #: overrides that of [isoflop]; with [isoflop] layers also by depth, as { 4 = 30.0, 8 = 16.0 }
    tokens_per_parameter: float | dict[str, float] | None = None
    layers: tuple[int, ...] | None = None  #: those of [isoflop] layers that it has; None: all

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.router)
        if self.seeds is not None:
            check_seeds(self.seeds)
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
class _Tables:
    """The tables of a suite file, not yet checked."""

    suite: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    measure: dict[str, Any] = field(default_factory=dict)
    time: dict[str, Any] = field(default_factory=dict)
    keep: dict[str, Any] = field(default_factory=dict)
    track: dict[str, Any] = field(default_factory=dict)
    isoflop: dict[str, Any] | None = None
    sweep: dict[str, Any]
    shapes: tuple[dict[str, Any], ...] = ()
    schemes: tuple[dict[str, Any], ...]
    compare: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A validated suite file."""

    source: str  #: the file as the user named it, for messages
    header: Header
    data: DataConfig
    train: TrainTable
    measure: MeasureConfig
    time: TimeConfig
    keep: KeepConfig
    track: TrackConfig
    axes: Axes
    shapes: dict[str, Shape]  #: sizes of the model by label; one size alone has an empty label
    #: keys that the file states of each of them; of a model of transformers none
    stated: dict[str, dict[str, Any]]
    hubs: dict[str, HubConfig]  #: models of transformers by the label of their scheme
    schemes: tuple[Scheme, ...]  #: with [isoflop] layers, each scheme once for each of its depths
    #: sizes around a centre per scheme and budget, in place of shapes
    isoflop: IsoFlopConfig | None = None
    comparisons: tuple[Comparison, ...] = ()  #: empty: all rows are compared

    def seeds_of(self, scheme: Scheme) -> tuple[int, ...]:
        """The seeds of ``scheme``."""
        return self.axes.seeds if scheme.seeds is None else scheme.seeds

    def shapes_of(self, scheme: Scheme) -> dict[str, Shape]:
        """The shapes of ``scheme`` by label."""
        if scheme.label in self.hubs:
            return {"": self.hubs[scheme.label]}
        if not scheme.model:
            return self.shapes
        return {label: ModelConfig(**{**keys, **scheme.model}) for label, keys in self.stated.items()}

    def training_of(self, scheme: Scheme) -> TrainTable:
        """The training settings of ``scheme``."""
        return replace(self.train, **scheme.train)

    def family_of(self, scheme: Scheme) -> IsoFlopConfig:
        """The family of shapes of ``scheme``; only for a suite with isoFLOP grids."""
        assert self.isoflop is not None
        family = self.isoflop.of_depth(scheme.depth)
        if scheme.tokens_per_parameter is None:
            return family
        assert not isinstance(scheme.tokens_per_parameter, dict)  # `at_depths` took the depth's number
        return replace(family, tokens_per_parameter=scheme.tokens_per_parameter)

    def at_depths(self, scheme: Scheme) -> list[Scheme]:
        """``scheme`` once for each of its depths; itself without [isoflop] layers."""
        if self.isoflop is None or self.isoflop.layers is None:
            return [scheme]
        centre = scheme.tokens_per_parameter
        by_depth = centre if isinstance(centre, dict) else {}
        return [
            replace(
                scheme,
                layers=(depth,),
                model={**scheme.model, "layers": depth},
                tokens_per_parameter=by_depth.get(str(depth)) if by_depth else centre,
            )
            for depth in scheme.layers or self.isoflop.layers
        ]


def find_suite(name: str) -> Path:
    """The file of suite ``name``: a shipped suite's name, or a path. Raises UserError: neither."""
    shipped = shipped_suites()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if is_file(path):
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise UserError(f"suite {name}: there is no such file; give the path of a TOML file")
    raise UserError(f"suite '{name}' is not known; {known_names(name, shipped)}; or give a file's path")


def load_suite(name: str, settings: Mapping[str, Any] | None = None) -> Suite:
    """Load the suite file that ``name`` stands for (see `find_suite`). ``settings``: values by
    "TABLE.KEY" in place of the file's. Raises UserError: no such suite, not TOML, an unknown table or
    key, a wrong type or value; the sentence names the file and the key."""
    path = find_suite(name)
    source = path.name if name in shipped_suites() else name
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # a byte-order mark may be there
    except (ValueError, RecursionError) as error:
        raise UserError(f"suite {source} isn't TOML ({error}); fix it there") from error
    except OSError as error:
        raise UserError(f"suite {source} can't be read ({error.strerror}); check the file") from error
    for key, value in (settings or {}).items():
        _set(content, key, value)
    suite = parse_suite(content, source)
    for name in settings or {}:
        table, _, key = name.partition(".")
        if all(key in row.get(table, {}) for row in _stated_by_rows(suite)):
            raise UserError(
                f"setting {name} changes no row: each of suite {source} states its own {key}; change it "
                "there, in a copy of the file"
            )
    return suite


def _stated_by_rows(suite: Suite) -> list[dict[str, Any]]:
    """The keys that each row states for itself, by table."""
    return [
        {"model": s.model, "train": s.train, "sweep": {} if s.seeds is None else {"seeds": s.seeds}}
        for s in suite.schemes
    ]


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    """Give ``content`` the ``value`` of "TABLE.KEY". Raises UserError: ``name`` has no such form."""
    table, _, key = name.partition(".")
    if not key or not isinstance(content.setdefault(table, {}), dict):
        raise UserError(
            f"--set {name}: it must be TABLE.KEY=VALUE with a table of suite files such as train, for "
            "example train.learning_rate=3e-3"
        )
    content[table][key] = value


def parse_suite(content: Mapping[str, Any], source: str) -> Suite:
    """Build the suite of the TOML document ``content``; ``source`` names it in messages. Raises
    UserError: see `load_suite`."""
    tables: _Tables = built(f"suite {source}", content, _Tables)
    where = f"suite {source}:"

    def table(name: str, kind: type) -> Any:
        return built(f"{where} [{name}]", getattr(tables, name), kind)

    data = _data(where, tables.data)
    axes = table("sweep", Axes)
    keep = table("keep", KeepConfig)
    measure = table("measure", MeasureConfig)
    train = table("train", TrainTable)
    stated_shapes = {} if "hf" in tables.model else _shapes(where, tables, data)
    schemes = []
    hubs = dict[str, HubConfig]()
    for number, entries in enumerate(tables.schemes, start=1):
        hub = hub_keys(f"{where} [[schemes]] {number}", entries, tables.model)
        stated = entries if hub is None else {"router": TRANSFORMERS, **entries}
        scheme: Scheme = built(f"{where} [[schemes]] {number}", stated, Scheme)
        at = f"{where} [[schemes]] '{scheme.label}' train" if scheme.train else f"{where} [train]"
        overrides = checked_fields(at, scheme.train, TrainTable)
        check_schedule(at, replace(train, **overrides), axes.budgets, measure, keep.weights)
        at = f"{where} [[schemes]] '{scheme.label}' model"
        if hub is not None:
            sequence = overrides.get("sequence", train.sequence)
            hubs[scheme.label] = hub_of(at, hub, data.vocabulary, sequence)
            schemes.append(replace(scheme, train=overrides))
            continue
        model = checked_fields(at, scheme.model, ModelConfig, without=("vocabulary",))
        for keys in stated_shapes.values():
            built(at, {**keys, **model}, ModelConfig)
        schemes.append(replace(scheme, model=model, train=overrides))
    check_labels(f"{where} [[schemes]]", [scheme.label for scheme in schemes])
    isoflop = None if tables.isoflop is None else _isoflop(where, table("isoflop", IsoFlopConfig))
    _refuse_contradictions(where, tables, schemes)
    if hubs:
        refuse_sizes(where, tables.isoflop is not None, bool(tables.shapes), next(iter(hubs)))
    time = table("time", TimeConfig)
    if time.compile == "auto":  # what is timed is what is trained
        time = replace(time, compile=train.compile)
    suite = Suite(
        source=source,
        header=table("suite", Header),
        data=data,
        train=train,
        measure=measure,
        time=time,
        keep=keep,
        track=table("track", TrackConfig),
        axes=axes,
        shapes={label: ModelConfig(**keys) for label, keys in stated_shapes.items()}
        or {"": next(iter(hubs.values()))},
        stated=stated_shapes,
        hubs=hubs,
        schemes=(),
        isoflop=isoflop,
    )
    for scheme in schemes:
        _check_depths(where, isoflop, scheme)
    suite = replace(suite, schemes=tuple(chain.from_iterable(map(suite.at_depths, schemes))))
    for scheme in suite.schemes if isoflop else ():
        try:
            suite.family_of(scheme)
        except UserError as error:
            raise UserError(f"{where} [[schemes]] '{scheme.name}': {error}") from error
    comparisons = tuple(
        built(f"{where} [[compare]] {number}", table, Comparison)
        for number, table in enumerate(tables.compare, start=1)
    )
    depths: dict[str, set[int | None]] = {}
    for scheme in suite.schemes:
        for size in suite.shapes:
            label = f"{scheme.label}/{size}" if size and scheme.label not in hubs else scheme.label
            depths.setdefault(label, set()).add(scheme.depth)
    check_comparisons(where, comparisons, depths, axes.budgets)
    return replace(suite, comparisons=comparisons)


def _data(where: str, table: dict[str, Any]) -> DataConfig:
    """The [data] table, with the vocabulary of its tokenizer's file."""
    data: DataConfig = built(f"{where} [data]", table, DataConfig)
    try:
        return with_tokenizer(data, table.get("vocabulary"))
    except UserError as error:
        raise UserError(f"{where} [data]: {error}") from error


def _refuse_contradictions(where: str, tables: _Tables, schemes: list[Scheme]) -> None:
    """Raise a `UserError` for settings that only an isoFLOP suite has, or that it chooses itself."""
    if tables.isoflop is None:
        for scheme in schemes:
            if scheme.tokens_per_parameter is not None:
                raise UserError(
                    f"{where} [[schemes]] '{scheme.label}' has tokens_per_parameter, which only a suite "
                    "with [isoflop] uses; remove it, or add [isoflop]"
                )
        return
    if tables.shapes:
        raise UserError(f"{where} [[shapes]] and [isoflop] both give sizes; remove one of them")
    for key in ("aspect", "layers"):
        models = (tables.model, *(scheme.model for scheme in schemes))
        if tables.isoflop.get(key) is not None and any("layers" in model for model in models):
            raise UserError(
                f"{where} [model] layers and [isoflop] {key} both give the depth; remove one"
            )
    for at, settings in [("[train]", tables.train), *((f"'{s.label}' train", s.train) for s in schemes)]:
        if "learning_rate" in settings:
            raise UserError(
                f"{where} {at} has a learning_rate, and [isoflop] chooses it from its learning_rates; "
                "remove it"
            )
    for scheme in schemes:
        if scheme.seeds is not None:
            raise UserError(
                f"{where} [[schemes]] '{scheme.label}' has seeds, and curves have those of [sweep]; "
                "remove them"
            )
        if "width" in scheme.model:
            raise UserError(
                f"{where} [[schemes]] '{scheme.label}' has a width, and [isoflop] chooses it; remove it"
            )


def _isoflop(where: str, isoflop: IsoFlopConfig) -> IsoFlopConfig:
    """``isoflop`` with checked settings of its depths."""
    at = {}
    for depth, keys in isoflop.at.items():
        table: Any = checked(f"{where} [isoflop] at {depth}", keys, dict[str, Any])
        at[depth] = checked_fields(
            f"{where} [isoflop.at.{depth}]", table, IsoFlopConfig, without=_OF_ALL_DEPTHS
        )
    isoflop = replace(isoflop, at=at)
    for depth in at:
        try:
            isoflop.of_depth(int(depth))
        except UserError as error:
            raise UserError(f"{where} [isoflop.at.{depth}]: {error}") from error
    return isoflop


def _check_depths(where: str, isoflop: IsoFlopConfig | None, scheme: Scheme) -> None:
    """Raises UserError: ``scheme`` names depths that [isoflop] layers does not list."""
    at = f"{where} [[schemes]] '{scheme.label}'"
    depths = isoflop.layers if isoflop and isoflop.layers else ()
    centre = scheme.tokens_per_parameter
    by_depth = centre if isinstance(centre, dict) else {}
    for key, of in (("layers", scheme.layers or ()), ("tokens_per_parameter", by_depth)):
        if unknown := sorted({*map(str, of)} - {*map(str, depths)}):
            raise UserError(
                f"{at} {key} has {unknown[0]}, which [isoflop] layers does not list; remove it, or add "
                "it there"
            )


def _shapes(where: str, tables: _Tables, data: DataConfig) -> dict[str, dict[str, Any]]:
    """The stated keys of each shape, by label, with the vocabulary of the data's tokenizer."""
    shapes = []
    for number, table in enumerate(tables.shapes or ({},), start=1):
        at = f"{where} [[shapes]] {number}" if tables.shapes else f"{where} [model]"
        overrides = dict(table)
        label = checked(f"{at} label", overrides.pop("label", ""), str)
        keys = {"vocabulary": data.vocabulary, **tables.model, **overrides}
        model = built(at, keys, ModelConfig)
        if model.vocabulary != data.vocabulary:
            raise UserError(
                f"{at} vocabulary is {model.vocabulary}, but the tokenizer of [data] has "
                f"{data.vocabulary}; leave it out, the data determines it"
            )
        shapes.append((label, checked_fields(at, keys, ModelConfig)))
    if tables.shapes:
        check_labels(f"{where} [[shapes]]", [label for label, _ in shapes])
    return dict(shapes)


def check_labels(where: str, labels: list[str]) -> None:
    """Raises UserError: a label is malformed, or two are equal; the sentence starts with ``where``."""
    for label in labels:
        if not LABEL.fullmatch(label):
            raise UserError(f"{where}: label is {label!r}; it must be {LABEL_WORDS}")
        if labels.count(label) > 1:
            raise UserError(f"{where}: two have the label '{label}'; give each its own label")
