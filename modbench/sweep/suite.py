"""Suites: what a file states (`modbench.sweep.tables`), with what follows from it; and the checks of
tables against each other. Imports no torch."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from modbench.data.config import DataConfig
from modbench.data.tokenizer import with_tokenizer
from modbench.errors import UserError, is_file, known_names
from modbench.hf.config import hub_keys, hub_of, refuse_sizes
from modbench.measure.config import MeasureConfig
from modbench.model.config import ModelConfig
from modbench.model.shape import TRANSFORMERS, HubConfig, Shape
from modbench.records.names import LABEL, LABEL_WORDS
from modbench.shipped import shipped_suites
from modbench.sweep.tables import (
    Axes,
    Comparison,
    DepthConfig,
    Header,
    IsoFlopConfig,
    KeepConfig,
    Scheme,
    SuiteFile,
    stated_comparisons,
)
from modbench.sweep.track import TrackConfig
from modbench.timing.config import TimeConfig
from modbench.train.config import TrainTable
from modbench.typed import Loc, built, overrides


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
    #: keys that the file states of each size, by its label in [[shapes]]; one size alone has an empty
    #: label, a model of transformers has none
    stated: dict[str, dict[str, Any]]
    hubs: dict[str, HubConfig]  #: models of transformers by the label of their scheme
    schemes: tuple[Scheme, ...]  #: each scheme once for each of its sizes or depths (`rows_of`)
    #: sizes around a centre per scheme and budget, in place of [[shapes]]
    isoflop: IsoFlopConfig | None
    depths: dict[int | None, DepthConfig]  #: settings of [isoflop] by `Scheme.depth`
    comparisons: tuple[Comparison, ...]  #: empty: all rows are compared

    def seeds_of(self, scheme: Scheme) -> tuple[int, ...]:
        """The seeds of ``scheme``."""
        return self.axes.seeds if scheme.seeds is None else scheme.seeds

    def shape_of(self, scheme: Scheme) -> Shape:
        """The shape of ``scheme``; that of its size, if its label has one after a slash."""
        if scheme.label in self.hubs:
            return self.hubs[scheme.label]
        size = scheme.label.partition("/")[2]
        return ModelConfig(**{**self.stated[size], **scheme.model})

    def training_of(self, scheme: Scheme) -> TrainTable:
        """The training settings of ``scheme``."""
        return replace(self.train, **scheme.train)

    def family_of(self, scheme: Scheme) -> DepthConfig:
        """The family of shapes of ``scheme``; only for a suite with isoFLOP grids."""
        family, centre = self.depths[scheme.depth], scheme.tokens_per_parameter
        if centre is None:
            return family
        assert not isinstance(centre, dict)  # `at_depths` took the depth's number
        return replace(family, tokens_per_parameter=centre)

    def rows_of(self, *schemes: Scheme) -> tuple[Scheme, ...]:
        """``schemes`` once for each size of [[shapes]], as LABEL/SIZE, or for each depth of theirs."""
        if self.stated.keys() - {""}:
            sizes = product(self.stated, schemes)
            return tuple(replace(of, label=f"{of.label}/{size}") for size, of in sizes)
        return tuple(chain.from_iterable(map(self._at_depths, schemes)))

    def _at_depths(self, scheme: Scheme) -> list[Scheme]:
        if self.isoflop is None or self.isoflop.layers is None:
            return [scheme]
        centre = scheme.tokens_per_parameter
        return [
            replace(
                scheme,
                layers=(depth,),
                model={**scheme.model, "layers": depth},
                tokens_per_parameter=centre.get(str(depth)) if isinstance(centre, dict) else centre,
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
    for setting, value in (settings or {}).items():
        table, _, key = setting.partition(".")
        if not key or not isinstance(content.setdefault(table, {}), dict):
            raise UserError(
                f"--set {setting}: it must be TABLE.KEY=VALUE with a table of suite files such as "
                "train, for example train.learning_rate=3e-3"
            )
        content[table][key] = value
    suite = parse_suite(content, source)
    for setting in settings or {}:
        table, _, key = setting.partition(".")
        own = [{"sweep": {"seeds": s.seeds} if s.seeds else {}, **asdict(s)} for s in suite.schemes]
        states = [key in row[table] for row in own] if table in ("model", "train", "sweep") else []
        # A row with its own seeds would keep all its runs, when fewer were asked for.
        if states and (all(states) or (key == "seeds" and any(states))):
            of, each = ("no row", "each") if all(states) else ("only some rows", "another")
            raise UserError(
                f"setting {setting} changes {of}: {each} of suite {source} states its own {key}; change "
                "it there, in a copy of the file"
            )
    return suite


def parse_suite(content: Mapping[str, Any], source: str) -> Suite:
    """Build the suite of the TOML document ``content``; ``source`` names it in messages. Raises
    UserError: see `load_suite`."""
    where = f"suite {source}"
    file = built(where, content, SuiteFile, _place)
    where += ":"
    try:
        data = with_tokenizer(file.data, content.get("data", {}).get("vocabulary"))
    except UserError as error:
        raise UserError(f"{where} [data]: {error}") from error
    check_training(f"{where} [train]", file.train, content.get("train", {}))
    stated = {} if "hf" in file.model else _stated_shapes(where, file, data)
    schemes = list[Scheme]()
    hubs = dict[str, HubConfig]()
    for number, entries in enumerate(file.schemes, start=1):
        at = f"{where} [[schemes]] {number}"
        hub = hub_keys(at, entries, file.model)
        scheme = built(at, entries if hub is None else {"router": TRANSFORMERS, **entries}, Scheme)
        at = f"{where} [[schemes]] '{scheme.label}'"
        train = overrides(f"{at} train", scheme.train, TrainTable, asdict(file.train))
        if train:
            check_training(f"{at} train", replace(file.train, **train), train)
        model = dict[str, Any]()
        if hub is not None:
            sequence = train.get("sequence", file.train.sequence)
            hubs[scheme.label] = hub_of(f"{at} model", hub, data.vocabulary, sequence)
            model = scheme.model
        elif "vocabulary" in scheme.model:
            raise UserError(f"{at} model has a vocabulary, and [data] determines it; remove it")
        for keys in stated.values() if hub is None else ():
            model = overrides(f"{at} model", scheme.model, ModelConfig, keys)
        schemes.append(replace(scheme, model=model, train=train))
    check_labels(f"{where} [[schemes]]", [scheme.label for scheme in schemes])
    _refuse_contradictions(where, file, content, schemes)
    if hubs:
        refuse_sizes(where, file.isoflop is not None, bool(file.shapes), next(iter(hubs)))
    time = file.time
    if time.compile == "auto":  # what is timed is what is trained
        time = replace(time, compile=file.train.compile)
    suite = Suite(
        source=source,
        header=file.suite,
        data=data,
        train=file.train,
        measure=file.measure,
        time=time,
        keep=file.keep,
        track=file.track,
        axes=file.sweep,
        stated=stated,
        hubs=hubs,
        schemes=(),
        isoflop=file.isoflop,
        depths=_depths(where, file.isoflop),
        comparisons=file.compare,
    )
    if suite.measure.routing_points and suite.keep.weights == "none":
        raise UserError(f"{where}: [measure] routing_points measures kept weights; leave [keep] out")
    suite = replace(suite, schemes=suite.rows_of(*schemes))
    _check_comparisons(where, suite)
    return suite


def _place(path: Loc) -> str:
    """Return the ``path`` of a key as a TOML file has it: " [train] batch" or " [[compare]] 2 a"."""
    if not path:
        return ""
    table, *rest = path
    if rest and isinstance(rest[0], int):
        table, rest = f"[{table}]", [rest[0] + 1, *rest[1:]]
    return ": " + " ".join(map(str, [f"[{table}]", *rest]))


def _stated_shapes(where: str, file: SuiteFile, data: DataConfig) -> dict[str, dict[str, Any]]:
    """The stated keys of each shape, by label, with the vocabulary of the data's tokenizer."""
    shapes = []
    for number, table in enumerate(file.shapes or ({},), start=1):
        at = f"{where} [[shapes]] {number}" if file.shapes else f"{where} [model]"
        own = dict(table)
        label = own.pop("label", "")
        keys = {"vocabulary": data.vocabulary, **file.model, **own}
        keys = overrides(at, keys, ModelConfig, {})
        if keys["vocabulary"] != data.vocabulary:
            raise UserError(
                f"{at} vocabulary is {keys['vocabulary']}, but the tokenizer of [data] has "
                f"{data.vocabulary}; leave it out, the data determines it"
            )
        shapes.append((label, keys))
    if file.shapes:
        check_labels(f"{where} [[shapes]]", [label for label, _ in shapes])
    return dict(shapes)


def _depths(where: str, isoflop: IsoFlopConfig | None) -> dict[int | None, DepthConfig]:
    """The settings of [isoflop] at each depth, with those of [isoflop.at]."""
    if isoflop is None:
        return {}
    common = {field.name: getattr(isoflop, field.name) for field in fields(DepthConfig)}
    return {
        depth: built(
            f"{where} [isoflop.at.{depth}]", common | isoflop.at.get(str(depth), {}), DepthConfig
        )
        for depth in isoflop.layers or (None,)
    }


def check_labels(where: str, labels: Sequence[Any]) -> None:
    """Raises UserError: a label is malformed, or two are equal; the sentence starts with ``where``."""
    for label in labels:
        if not isinstance(label, str) or not LABEL.fullmatch(label):
            raise UserError(f"{where}: label is {label!r}; it must be {LABEL_WORDS}")
        if labels.count(label) > 1:
            raise UserError(f"{where}: two have the label '{label}'; give each its own label")


def check_training(at: str, train: TrainTable, stated: Mapping[str, Any]) -> None:
    """Raises UserError: warm-up and decay of ``train`` overlap, micro-batches don't make a batch, or
    Muon's rate is ``stated`` and Muon isn't used."""
    if "muon_learning_rate" in stated and train.optimizer != "muon":
        raise UserError(
            f"{at} has muon_learning_rate, and optimizer is '{train.optimizer}'; remove it, or set "
            "optimizer = 'muon' next to it"
        )
    if train.batch % train.ranks:
        raise UserError(
            f"{at} parallel has {train.ranks} processes; they must divide batch, which is {train.batch}"
        )
    if (train.batch // train.ranks) % train.rows:
        raise UserError(
            f"{at} micro_batch is {train.micro_batch}; it must divide the sequences of a process, which "
            f"are {train.batch // train.ranks}"
        )
    try:
        train.schedule_of(1)
    except UserError as error:
        raise UserError(f"{at}: {error}") from error


def _refuse_contradictions(
    where: str, file: SuiteFile, content: Mapping[str, Any], schemes: Sequence[Scheme]
) -> None:
    """Raises UserError: a setting that only an isoFLOP suite has, or that it chooses itself."""
    isoflop = file.isoflop
    depths = {str(depth) for depth in isoflop.layers or ()} if isoflop else set[str]()
    rates = ("learning_rate", "muon_learning_rate") if isoflop else ()
    refused = [(f"{where} [train]", rate, content.get("train", {})) for rate in rates]
    for scheme in schemes:
        at = f"{where} [[schemes]] '{scheme.label}'"
        centre = scheme.tokens_per_parameter
        if isoflop is None and centre is not None:
            raise UserError(
                f"{at} has tokens_per_parameter, which only a suite with [isoflop] uses; remove it, or "
                "add [isoflop]"
            )
        by_depth = centre if isinstance(centre, dict) else {}
        for key, own in (("layers", scheme.layers or ()), ("tokens_per_parameter", by_depth)):
            if unknown := sorted({*map(str, own)} - depths):
                raise UserError(
                    f"{at} {key} has {unknown[0]}, which [isoflop] layers does not list; remove it, or "
                    "add it there"
                )
        if isoflop is not None:
            refused += [(f"{at} train", rate, scheme.train) for rate in rates]
            refused.append((f"{at} model", "width", scheme.model))
            refused.append((at, "seeds", {} if scheme.seeds is None else {"seeds": scheme.seeds}))
    sources = {"width": "its budgets", "seeds": "[sweep] seeds"}
    sources |= dict.fromkeys(rates, "its learning_rates")
    for at, key, table in refused:
        if key in table:
            raise UserError(f"{at} has {key}, which [isoflop] takes from {sources[key]}; remove it")
    if isoflop is not None and file.shapes:
        raise UserError(f"{where} [[shapes]] and [isoflop] both give sizes; remove one of them")
    for key in ("aspect", "layers"):
        models = (file.model, *(scheme.model for scheme in schemes))
        if getattr(isoflop, key, None) is not None and any("layers" in model for model in models):
            raise UserError(
                f"{where} [model] layers and [isoflop] {key} both give the depth; remove one"
            )


def _check_comparisons(where: str, suite: Suite) -> None:
    """Raises UserError: a row, budget or depth that ``suite`` does not have, a row with itself or with
    one of other seeds, or two comparisons of the same."""
    seeds = {scheme.label: {*suite.seeds_of(scheme)} for scheme in suite.schemes}
    depths: dict[str, set[int | None]] = {}
    for scheme in suite.schemes:
        depths.setdefault(scheme.label, set()).add(scheme.depth)
    seen = set[tuple[frozenset[str], int, int | None]]()
    budgets = suite.axes.budgets
    for number, pair in enumerate(suite.comparisons, start=1):
        at = f"{where} [[compare]] {number}"
        for key in ("a", "b"):
            if (label := getattr(pair, key)) not in depths:
                raise UserError(
                    f"{at} {key} is '{label}', which is no row; {known_names(label, depths)}"
                )
            if pair.depth is not None and pair.depth not in depths[label]:
                raise UserError(
                    f"{at} depth is {pair.depth}, at which '{label}' has no curve; remove it"
                )
        if pair.a == pair.b:
            raise UserError(f"{at} compares '{pair.a}' with itself; name another row")
        if pair.a.partition("/")[2] != pair.b.partition("/")[2]:
            raise UserError(
                f"{at} compares '{pair.a}' with '{pair.b}', and rows of two sizes are in two tables; "
                "name rows of one size, or give [[schemes]] their own model in place of [[shapes]]"
            )
        if seeds[pair.a].isdisjoint(seeds[pair.b]):
            raise UserError(f"{at} compares '{pair.a}' with '{pair.b}', which share no seed; give one")
        if pair.budget is not None and pair.budget not in budgets:
            raise UserError(f"{at} budget is {pair.budget:g}, which [sweep] budgets lacks; add it there")
        for stated in stated_comparisons([pair], budgets):
            same = (frozenset((pair.a, pair.b)), stated["budget"], pair.depth)
            if same in seen:
                raise UserError(f"{at} compares '{pair.a}' with '{pair.b}' a second time; remove it")
            seen.add(same)
