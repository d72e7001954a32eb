"""Resolves the rows of a suite: the options of each router, and the FLOPs of a training step.

Code of plugins runs in worker processes only: code that exits, crashes or hangs there costs its own row.
"""

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modbench.errors import UserError, is_file, several
from modbench.model.config import ModelConfig
from modbench.model.shape import TRANSFORMERS, HubConfig
from modbench.records.run import RouterCode
from modbench.records.run_name import RunName
from modbench.sweep.process import DiedError, Say, run_worker
from modbench.sweep.suite import Suite, check_labels
from modbench.sweep.tables import DepthConfig, Scheme

if TYPE_CHECKING:
    from modbench.plan.solver import Read

#: Seconds without progress after which the worker of a plugin is ended.
PLUGIN_SECONDS = 120.0
#: Built-in routers whose row's `model` and `train` hold for an added router of the same base class.
PATTERNS = ("mod", "token_choice", "vanilla")
#: Least training steps of a run on an isoFLOP curve, so that less than 0.5 % of the budget is unspent.
LEAST_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A scheme whose router was built: its name, all of its options, the hash of its plugin, and the
    nominal FLOPs of a training step at each shape (a sentence where it can't take the shape)."""

    name: str
    options: dict[str, Any]
    plugin_sha256: str | None
    flops: list[int | str]
    #: with isoFLOP grids: the shapes of each budget of the suite, in ascending order
    grids: list[list[dict[str, Any]]] = field(default_factory=list)
    #: and the nominal FLOPs of a training step of each
    grid_flops: list[list[int]] = field(default_factory=list)
    grid_sizes: list[list[int]] = field(default_factory=list)  #: active parameters of each
    #: grids whose centre is one step of spacing smaller ("-1") or larger ("1"), for [isoflop] recentre
    shifted: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)
    plugin: str | None = None  #: the plugin file that a process of this row loads


@dataclass
class Rows:
    """The rows of ``suite``, which has one scheme more for each router of the plugins that it does not
    name; and the ``mistakes`` of plugins whose rows were left out."""

    suite: Suite
    resolved: dict[str, Resolved] = field(default_factory=dict)  #: by the scheme's name
    mistakes: list[UserError] = field(default_factory=list)
    #: a sentence for each row that the suite does not name, by label
    added: dict[str, str] = field(default_factory=dict)

    def plugins_of(self, router: RouterCode | None) -> list[str]:
        """The plugin files that a process of ``router`` loads: the one that registers it, if any."""
        files = {row.plugin for row in self.resolved.values() if router and row.name == router.name}
        return sorted(file for file in files if file)

    def additions(self, only: Sequence[str]) -> list[str]:
        """A sentence for each added row; ``only``: names of rows that are chosen, empty for all."""
        chosen = {RunName.parsed(name).row.partition("/")[0] for name in only}
        return [said for label, said in self.added.items() if not only or label in chosen]


def resolve(suite: Suite, plugins: Sequence[Path] = ()) -> Rows:
    """Resolve the rows of ``suite``, and of the routers of the files ``plugins``. Raises UserError: an
    unknown router or option or a wrong value in the suite; a plugin file is missing or can't be
    imported; or two rows have the same label."""
    from modbench.routing.registry import installed_modules

    for file in plugins:
        if not is_file(file):
            raise UserError(f"plugin {file}: there is no such file; give the path of a Python file")
    installed, rows = installed_modules(), Rows(suite)
    modules = {s.label: installed.get(s.router.partition(":")[0], "") for s in suite.schemes}
    foreign = {label for label, name in modules.items() if name and not name.startswith("modbench.")}
    packaged = [scheme for scheme in suite.schemes if scheme.label in foreign]
    asked: list[_Asked] = [(file, suite.schemes) for file in plugins]
    if packaged:
        asked.append((None, packaged))
    for (plugin, _), answer in zip(asked, _ask_all(suite, asked), strict=True):
        _add(rows, plugin, answer)
    for depth in dict.fromkeys(scheme.depth for scheme in rows.suite.schemes):
        labels = [scheme.label for scheme in rows.suite.schemes if scheme.depth == depth]
        check_labels(f"suite {suite.source} with its plugins", labels)
    for scheme in suite.schemes:
        may_be_left_out = rows.mistakes and not modules[scheme.label]  # of a plugin with a mistake
        if scheme not in packaged and scheme.name not in rows.resolved and not may_be_left_out:
            try:
                row = describe_row(asdict(scheme), asdict(suite.train), **_sizes(suite, scheme))
            except UserError as error:
                where = f"suite {suite.source}: [[schemes]] '{scheme.name}'"
                raise UserError(f"{where}: {error}") from error
            rows.resolved[scheme.name] = row
    return rows


def _add(rows: Rows, file: Path | None, answer: dict[str, Any] | UserError) -> None:
    """Add to ``rows`` what the worker of plugin ``file`` (None: of installed packages) has found."""
    if isinstance(answer, UserError):
        rows.mistakes.append(answer)
        return
    for name, pattern in answer["fresh"].items():
        fresh = _added(rows.suite, name, pattern)
        rows.added[name] = f"row '{name}' was added by --plugin {file}; the suite does not name it"
        like = _like(rows.suite, pattern)
        if like and (like.train or like.model.keys() - ({"layers"} if like.depth else {})):
            rows.added[name] += f", and it has `model` and `train` of row '{like.label}'"
        rows.suite = replace(rows.suite, schemes=(*rows.suite.schemes, *fresh))
    for name, row in answer["rows"].items():
        if isinstance(row, str):
            where = f"suite {rows.suite.source}: [[schemes]] '{name}'"
            rows.mistakes.append(UserError(f"{where}: {row}"))
        else:
            rows.resolved[name] = Resolved(**row | {"plugin": str(file.resolve()) if file else None})


def _like(suite: Suite, pattern: str) -> Scheme | None:
    """The first row of ``suite`` with the built-in router ``pattern``."""
    rows = (s for s in suite.schemes if s.router == pattern and s.label not in suite.hubs)
    return next(rows, None)


def _added(suite: Suite, name: str, pattern: str) -> list[Scheme]:
    """The row of the added router ``name`` at each depth, with `model` and `train` of `_like`."""
    like = _like(suite, pattern)
    row = Scheme(router=name)
    return suite.at_depths(replace(row, model=like.model, train=like.train) if like else row)


def _sizes(suite: Suite, scheme: Scheme) -> dict[str, Any]:
    """The shapes of ``scheme`` as `describe_row` takes them: all of them, or the family of its grids."""
    shapes = [asdict(model) for model in suite.shapes_of(scheme).values()]
    if suite.isoflop is None:
        return {"shapes": shapes}
    family = asdict(suite.family_of(scheme))
    return {"shapes": shapes, "family": family, "budgets": list(suite.axes.budgets)}


_Asked = tuple[Path | None, Sequence[Scheme]]


def _ask_all(suite: Suite, asked: Sequence[_Asked]) -> list[dict[str, Any] | UserError]:
    """Have a worker for each of ``asked``, at the same time. Ctrl-C ends them at once: the import of a
    plugin may hang."""
    stopped = threading.Event()

    def poll() -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    with ThreadPoolExecutor() as pool:
        try:
            return list(pool.map(lambda of: _ask(suite, of[0], of[1], poll), asked))
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def _ask(
    suite: Suite, file: Path | None, schemes: Sequence[Scheme], poll: Callable[[], None]
) -> dict[str, Any] | UserError:
    """Have a worker describe those of ``schemes`` whose router ``file`` (None: a package) registers, and
    the routers that no scheme names. ``poll`` is called while it runs, and may raise. Raises UserError:
    ``file`` can't be imported."""
    spec = {
        "job": "rows",
        "plugins": [str(file)] if file else [],
        "schemes": [[asdict(scheme), _sizes(suite, scheme)] for scheme in schemes],
        "others": {
            pattern: [[asdict(s), _sizes(suite, s)] for s in _added(suite, "other", pattern)]
            for pattern in PATTERNS
        },
        "train": asdict(suite.train),
        "threads": 1,
    }
    at = ["its import"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.txt")
        try:
            return run_worker(
                spec,
                log=log,
                hear=lambda event: at.append(event["phase"]),
                poll=poll,
                timeout=PLUGIN_SECONDS,
            )
        except DiedError as death:
            where = f"plugin {file}" if file else f"suite {suite.source}, installed routers"
            sentence = f"{where}: its process ended in {at[-1]}: {death}"
            mistake = UserError(str(death) if death.code == 2 else sentence)
            if len(at) == 1:  # no row was begun
                raise mistake from death
            return mistake


def describe_rows(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """Load the plugin of ``spec``. Return the ``rows`` of its routers by name: fields of `Resolved`, or
    an error; and the ``fresh`` routers, which none of the ``schemes`` names, each with that of
    `PATTERNS` which has its base class. Raises UserError: the plugin raises or registers nothing."""
    import torch

    from modbench.routing.depth_router import DepthRouter
    from modbench.routing.expert_router import ExpertRouter
    from modbench.routing.registry import load_plugin, router_class

    torch.set_num_threads(spec["threads"])
    names = [name for file in spec["plugins"] for name in load_plugin(file)]
    named = {scheme["router"].partition(":")[0] for scheme, _ in spec["schemes"]}
    fresh = dict[str, str]()
    for name in names:
        if name not in named:
            place = [
                issubclass(router_class(name), base) for base in (DepthRouter, ExpertRouter, object)
            ]
            fresh[name] = PATTERNS[place.index(True)]
    rows: dict[str, Any] = {}
    others = [
        [{**scheme, "router": name, "label": name}, sizes]
        for name, pattern in fresh.items()
        for scheme, sizes in spec["others"][pattern]
    ]
    for scheme, sizes in [*spec["schemes"], *others]:
        if spec["plugins"] and scheme["router"].partition(":")[0] not in names:
            continue
        row_name = Scheme(**scheme).name
        say({"event": "phase", "phase": f"row '{row_name}'"})
        try:
            rows[row_name] = asdict(describe_row(scheme, spec["train"], **sizes))
        except UserError as error:
            rows[row_name] = str(error)
    return {"rows": rows, "fresh": fresh}


def describe_row(
    scheme: Mapping[str, Any],
    train: Mapping[str, Any],
    *,
    shapes: Sequence[Mapping[str, Any]],
    family: Mapping[str, Any] | None = None,
    budgets: Sequence[int] = (),
) -> Resolved:
    """Build the router of ``scheme`` and read its FLOPs at each of ``shapes``, or with ``family`` at the
    grids around the only one for ``budgets``. Imports torch and the router. Raises UserError: an unknown
    router or option, a wrong value, or a budget without a grid."""
    from modbench.hf.models import outline_of
    from modbench.routing.build import outline
    from modbench.routing.registry import build_router, plugin_sha256, preset_options
    from modbench.train.config import TrainTable
    from modbench.train.counted import flops_per_step

    config = TrainTable(**{**train, **scheme["train"]}).config()
    row = Resolved(name=TRANSFORMERS, options={}, plugin_sha256=None, flops=[])
    if scheme["router"] != TRANSFORMERS:
        name, preset = preset_options(scheme["router"])
        router = build_router(name, {**preset, **scheme["options"]})
        sha256 = plugin_sha256(name)
        row = Resolved(name=name, options=router.options(), plugin_sha256=sha256, flops=[])
    if any("config" in shape for shape in shapes):  # of models of transformers
        hubs = [outline_of(HubConfig(**shape), row.name, row.options) for shape in shapes]
        return replace(row, flops=[flops_per_step(hub, config) for hub in hubs])

    @cache
    def read(model: ModelConfig) -> tuple[int, int]:
        """FLOPs of a training step, and active parameters."""
        decoder = outline(model, router)
        return flops_per_step(decoder, config), decoder.parameter_count("active")

    models = [ModelConfig(**shape) for shape in shapes]
    if family is not None:
        step_tokens = config.batch * config.sequence
        return _with_grids(row, DepthConfig(**family), models[0], budgets, read, step_tokens)
    for model in models:
        try:
            row.flops.append(read(model)[0])
        except UserError as error:
            row.flops.append(str(error))
    return row


def _with_grids(
    row: Resolved,
    isoflop: DepthConfig,
    base: ModelConfig,
    budgets: Sequence[int],
    read: "Read",
    step_tokens: int,
) -> Resolved:
    """Return ``row`` with the grids around ``base``. Raises UserError: a budget is too small for one, or
    buys too few steps of its largest shape."""
    from modbench.plan.solver import isoflop_grid, solved

    def search(read: "Read", shift: int = 0) -> list[ModelConfig]:
        # At equal FLOPs, tokens per parameter fall with the square of the size.
        centred = isoflop.tokens_per_parameter / isoflop.spacing ** (2 * shift)
        moved = replace(isoflop, tokens_per_parameter=centred)
        grids = (isoflop_grid(moved, base, budget, read, step_tokens) for budget in budgets)
        return list(chain.from_iterable(grids))

    def by_budget(shapes: Sequence[ModelConfig]) -> list[list[ModelConfig]]:
        starts = range(0, len(shapes), isoflop.sizes)
        grids = [list(shapes[start : start + isoflop.sizes]) for start in starts]
        for budget, grid in zip(budgets, grids, strict=True):
            steps = budget // max(step_and_active(shape)[0] for shape in grid)
            if steps < LEAST_STEPS:
                raise UserError(
                    f"budget {budget:g} buys only {several(steps, 'training step')} of width "
                    f"{grid[-1].width}, too few to spend it within 0.5 %; raise it, or lower "
                    f"batch or sequence ({LEAST_STEPS} do)"
                )
        return grids

    found, step_and_active = solved(search, read, isoflop.layer_step, isoflop.layer_step)
    grids = by_budget(found)
    shifted = dict[str, list[list[dict[str, Any]]]]()
    for shift in (-1, 1) if isoflop.recentre else ():
        with suppress(UserError):  # too small or too few steps: the grids stay where they are
            moved = by_budget(search(step_and_active, shift))
            shifted[str(shift)] = [[asdict(shape) for shape in grid] for grid in moved]
    return replace(
        row,
        grids=[[asdict(shape) for shape in grid] for grid in grids],
        grid_flops=[[step_and_active(shape)[0] for shape in grid] for grid in grids],
        grid_sizes=[[step_and_active(shape)[1] for shape in grid] for grid in grids],
        shifted=shifted,
    )
