"""Resolves the rows of a suite: the options of each router, and the FLOPs of a training step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modbench.errors import ModelError, UserError, is_file, known_names, models_code, several
from modbench.model.config import ModelConfig
from modbench.model.shape import TRANSFORMERS, HubConfig
from modbench.plan.family import LAYER_STEP
from modbench.records.run import RouterCode
from modbench.records.run_name import RunName
from modbench.sweep.suite import Suite, check_labels
from modbench.sweep.tables import DepthConfig, Scheme

if TYPE_CHECKING:
    from modbench.plan.solver import Read

#: Least training steps of a run on an isoFLOP curve, so that less than 0.5 % of the budget is unspent.
LEAST_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A scheme whose router was built: its name, all of its options, the hash of its plugin, and the
    nominal FLOPs of a training step; 0 with isoFLOP grids."""

    name: str
    options: dict[str, Any]
    plugin_sha256: str | None
    flops: int = 0
    #: with isoFLOP grids: the shapes of each budget of the suite, in ascending order
    grids: list[list[ModelConfig]] = field(default_factory=list)
    #: and the nominal FLOPs of a training step of each
    grid_flops: list[list[int]] = field(default_factory=list)
    plugin: str | None = None  #: the plugin file that a process of this row loads


@dataclass
class Rows:
    """The rows of ``suite``, which has one scheme more for each router of the plugins that it does not
    name; and the ``mistakes`` of plugins and faults of models whose rows were left out."""

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


def resolve(suite: Suite, plugins: Sequence[Path] = (), like: str | None = None) -> Rows:
    """Resolve the rows of ``suite``, and of the routers of ``plugins``: files, which are imported, or
    names of routers that installed packages have. An added row has `model` and `train` of the row
    ``like``, or of one of its kind. A plugin's mistake or a `ModelError` leaves out its rows. Raises
    UserError: an unknown router, option or row, or a wrong value in the suite; a plugin file is missing;
    or two rows have the same label."""
    from modbench.routing.registry import foreign_routers, installed_modules, load_plugin

    packaged = [file for file in plugins if not is_file(file) and str(file) in foreign_routers()]
    for file in plugins:
        if not is_file(file) and file not in packaged:
            raise UserError(f"plugin {file}: there is no such file; give the path of a Python file")
    rows = Rows(suite)
    files: dict[str, Path] = {}  # by router
    for file in plugins:
        if file in packaged:
            continue
        try:
            files |= dict.fromkeys(load_plugin(file), file)
        except UserError as error:
            rows.mistakes.append(error)
    installed, named = installed_modules(), {_router(scheme) for scheme in suite.schemes}
    added = {name: file for name, file in files.items() if name not in named}
    added |= {str(name): name for name in packaged if str(name) not in named}
    if like is not None and not added and not rows.mistakes:
        raise UserError("--like is for rows that --plugin adds, and there are none; leave it out")
    labels = dict.fromkeys(scheme.label.partition("/")[0] for scheme in suite.schemes)
    check_labels(f"suite {suite.source} with its plugins", [*labels, *added])
    for name, file in added.items():
        _add(rows, name, file, like)
    unread = bool(rows.mistakes)
    for scheme in rows.suite.schemes:
        plugin, module = files.get(_router(scheme)), installed.get(_router(scheme))
        if unread and not plugin and not module and scheme.router != TRANSFORMERS:
            continue  # of a plugin that can't be imported
        try:
            row = _resolved(suite, scheme)
        except UserError as error:
            where = f"suite {suite.source}: [[schemes]] '{scheme.name}'"
            mistake = UserError(f"{where}: {error}")
            built_in = module is None or module.startswith("modbench.")
            if not plugin and built_in and not isinstance(error, ModelError):
                raise mistake from error
            rows.mistakes.append(mistake)
        else:
            path = str(plugin.resolve()) if plugin else None
            rows.resolved[scheme.name] = replace(row, plugin=path)
    return rows


def _router(scheme: Scheme) -> str:
    return scheme.router.partition(":")[0]


def _add(rows: Rows, name: str, file: Path, like: str | None) -> None:
    """Add a row of router ``name`` at each size or depth, with `model` and `train` of the row ``like``;
    None: of the first row with the built-in router of its base class."""
    from modbench.routing.depth_router import DepthRouter
    from modbench.routing.expert_router import ExpertRouter
    from modbench.routing.registry import router_class

    suite, router = rows.suite, router_class(name)
    pattern = "vanilla"
    if issubclass(router, DepthRouter):
        pattern = "mod"
    elif issubclass(router, ExpertRouter):
        pattern = "token_choice"
    labels = {s.label.partition("/")[0]: s for s in reversed(suite.schemes) if s.label not in suite.hubs}
    alike = [label for label, scheme in labels.items() if scheme.router == pattern]
    if like is not None and like not in labels:
        raise UserError(f"--like: no row of the suite is called '{like}'; {known_names(like, labels)}")
    row = Scheme(router=name)
    rows.added[name] = f"row '{name}' was added by --plugin {file}; the suite does not name it"
    if label := like or next(reversed(alike), None):
        model, train, depth = (getattr(labels[label], of) for of in ("model", "train", "depth"))
        row = replace(row, model=model, train=train)
        if train or model.keys() - ({"layers"} if depth else {}):
            rows.added[name] += f", and it has `model` and `train` of row '{label}'"
    rows.suite = replace(suite, schemes=(*suite.schemes, *suite.rows_of(row)))


def _resolved(suite: Suite, scheme: Scheme) -> Resolved:
    """Build the router of ``scheme`` and read its FLOPs at its shape, or at the grids of its budgets.
    Imports torch and the router. Raises UserError: an unknown router or option, a wrong value, a shape
    that the router can't take, or a budget without a grid."""
    from modbench.hf.models import outline_of
    from modbench.routing.build import outline
    from modbench.routing.registry import build_router, plugin_sha256, preset_options
    from modbench.train.counted import flops_per_step

    config = suite.training_of(scheme).config()
    model = suite.shape_of(scheme)
    row = Resolved(name=TRANSFORMERS, options={}, plugin_sha256=None)
    if scheme.router != TRANSFORMERS:
        name, preset = preset_options(scheme.router)
        router = build_router(name, {**preset, **scheme.options})
        sha256 = plugin_sha256(name)
        row = Resolved(name=name, options=router.options(), plugin_sha256=sha256)

    @cache
    def read(model: ModelConfig) -> tuple[int, int]:
        """FLOPs of a training step, and active parameters."""
        decoder = outline(model, router)
        return flops_per_step(decoder, config), decoder.parameter_count("active")

    if isinstance(model, HubConfig):
        fault = f"the FLOPs of a model of model_type '{model.family}' can't be counted"
        with models_code(fault, "give another family, or fix its config.json"):
            return replace(row, flops=flops_per_step(outline_of(model, row.name, row.options), config))
    if suite.isoflop:
        step_tokens = config.batch * config.sequence
        family, budgets = suite.family_of(scheme), suite.axes.budgets
        return _with_grids(row, family, model, budgets, read, step_tokens)
    return replace(row, flops=read(model)[0])


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

    def search(read: "Read") -> list[ModelConfig]:
        grids = (isoflop_grid(isoflop, base, budget, read, step_tokens) for budget in budgets)
        return list(chain.from_iterable(grids))

    found, read = solved(search, read, LAYER_STEP, LAYER_STEP)
    grids = [found[at : at + isoflop.sizes] for at in range(0, len(found), isoflop.sizes)]
    grid_flops = [[read(shape)[0] for shape in grid] for grid in grids]
    for budget, grid, flops in zip(budgets, grids, grid_flops, strict=True):
        if (steps := budget // max(flops)) < LEAST_STEPS:
            raise UserError(
                f"budget {budget:g} buys only {several(steps, 'training step')} of width "
                f"{grid[-1].width}, too few to spend it within 0.5 %; raise it, or lower "
                f"batch or sequence ({LEAST_STEPS} do)"
            )
    return replace(row, grids=grids, grid_flops=grid_flops)
