"""Resolves the rows of a suite: the options of each router, and the FLOPs of a training step.

Code of plugins runs in worker processes only: a plugin that exits, crashes or hangs costs its own rows.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from modbench.errors import UserError
from modbench.sweep.suite import Scheme, Suite, check_labels
from modbench.sweep.worker import COMMAND, DiedError, Say, run_worker

#: Seconds without progress after which the worker of a plugin is ended.
PLUGIN_SECONDS = 120.0
_REGISTERS = re.compile(r"""register_router\(\s*["']([^"']+)""")


class RefusedError(UserError):
    """A plugin's mistake, for which the rows called ``labels`` are left out. Without labels, any row may
    be of that plugin."""

    def __init__(self, sentence: str, labels: Sequence[str]) -> None:
        super().__init__(sentence)
        self.labels = frozenset(labels)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A scheme whose router was built: its name, all of its options, the hash of its plugin, and the
    nominal FLOPs of a training step at each shape (a sentence where it can't take the shape)."""

    name: str
    options: dict[str, Any]
    plugin_sha256: str | None
    flops: list[int | str]
    plugin: str | None = None  #: the plugin file that a process of this row loads


@dataclass
class Rows:
    """The rows of ``suite``, which has one scheme more for each router of the plugins that it does not
    name; and the ``mistakes`` of plugins whose rows were left out."""

    suite: Suite
    resolved: dict[str, Resolved] = field(default_factory=dict)  #: by the scheme's label
    mistakes: list[RefusedError] = field(default_factory=list)

    def plugins_of(self, cell: Mapping[str, Any]) -> list[str]:
        """The plugin files that a process of ``cell`` loads: that of its router, if any."""
        name = cell["router"]["name"] if cell["router"] else None
        found = {row.plugin for row in self.resolved.values() if row.name == name and row.plugin}
        return sorted(found)


def resolve(suite: Suite, plugins: Sequence[Path] = (), command: Sequence[str] = COMMAND) -> Rows:
    """Resolve the rows of ``suite``, and of the routers of the files ``plugins``.

    Raises:
        UserError: an unknown router or option or a wrong value in the suite; a plugin file is missing;
            or two rows have the same label.
    """
    for file in plugins:
        if not file.is_file():
            raise UserError(f"plugin {file}: there is no such file; give the path of a Python file")
    rows, installed = Rows(suite), _installed(suite)
    tasks = [partial(_of_file, suite, file, rows, command) for file in plugins]
    if installed:
        tasks.append(partial(_ask, suite, None, installed, rows, command))
    with ThreadPoolExecutor() as pool:
        for fresh in pool.map(lambda task: task(), tasks):
            rows.suite = replace(rows.suite, schemes=(*rows.suite.schemes, *fresh))
    check_labels(f"suite {suite.source} with its plugins", [one.label for one in rows.suite.schemes])
    for scheme in suite.schemes:
        if scheme.label not in rows.resolved and not _is_left_out(scheme, rows):
            try:
                found = describe_row(asdict(scheme), _shapes(suite), suite.train)
            except UserError as error:
                raise UserError(
                    f"suite {suite.source}: [[schemes]] '{scheme.label}': {error}"
                ) from error
            rows.resolved[scheme.label] = Resolved(**found)
    return rows


def labels_of(scheme: str, suite: Suite) -> list[str]:
    """The label of the row of each shape of ``suite`` for the scheme labelled ``scheme``."""
    return [f"{scheme}/{shape.label}" if shape.label else scheme for shape in suite.shapes]


def _installed(suite: Suite) -> list[Scheme]:
    """The schemes of ``suite`` whose router an installed package registers."""
    from modbench.routing.registry import installed_modules

    modules = installed_modules()
    named = [(scheme, modules.get(scheme.router.partition(":")[0], "")) for scheme in suite.schemes]
    return [scheme for scheme, module in named if module and not module.startswith("modbench.")]


def _is_left_out(scheme: Scheme, rows: Rows) -> bool:
    from modbench.routing.registry import installed_modules

    label = labels_of(scheme.label, rows.suite)[0]
    if any(label in mistake.labels for mistake in rows.mistakes):
        return True
    # A file that could not be loaded may register this router.
    unknown = scheme.router.partition(":")[0] not in installed_modules()
    return unknown and any(not mistake.labels for mistake in rows.mistakes)


def _shapes(suite: Suite) -> list[dict[str, Any]]:
    return [asdict(shape.model) for shape in suite.shapes]


def _of_file(suite: Suite, file: Path, rows: Rows, command: Sequence[str]) -> list[Scheme]:
    """Resolve the rows of plugin ``file``; return the schemes that the suite does not name."""
    return _ask(suite, file, list(suite.schemes), rows, command)


def _ask(
    suite: Suite, file: Path | None, schemes: list[Scheme], rows: Rows, command: Sequence[str]
) -> list[Scheme]:
    """Have workers describe those of ``schemes`` whose router ``file`` (None: a package) registers. A
    worker that dies costs the row that it was at; another one goes on with the rest."""
    fresh: list[Scheme] = []
    left = {scheme.label: scheme for scheme in schemes}
    while True:
        answers = _Answers()
        death = _run(suite, file, list(left.values()), bool(fresh), answers, command)
        if answers.names is None:
            rows.mistakes.append(_refused_file(suite, file, str(death), left))
            return fresh
        if not fresh:
            fresh = [Scheme(router=name) for name in answers.names if name in answers.fresh]
            left |= {scheme.label: scheme for scheme in fresh}
        for label, found in answers.found.items():
            left.pop(label)
            if isinstance(found, str):
                where = f"suite {suite.source}: [[schemes]] '{label}': "
                rows.mistakes.append(RefusedError(where + found, labels_of(label, suite)))
            else:
                rows.resolved[label] = Resolved(**found, plugin=str(file.resolve()) if file else None)
        if death is None or answers.at is None:
            return fresh
        sentence = f"row '{answers.at}': its process ended while its model was built: {death}"
        rows.mistakes.append(RefusedError(sentence, labels_of(answers.at, suite)))
        left.pop(answers.at)


@dataclass
class _Answers:
    """Events that a worker has reported."""

    names: list[str] | None = None  #: routers that the file registers; None until it is loaded
    fresh: list[str] = field(default_factory=list)  #: those that no scheme names
    at: str | None = None  #: label of the row that it is at
    found: dict[str, Any] = field(default_factory=dict)  #: by label: fields of `Resolved`, or an error

    def hear(self, event: dict[str, Any]) -> None:
        if "names" in event:
            self.names, self.fresh = event["names"], event["fresh"]
        elif "found" in event:
            self.found[event["label"]], self.at = event["found"], None
        elif "label" in event:
            self.at = event["label"]


def _run(
    suite: Suite,
    file: Path | None,
    schemes: list[Scheme],
    again: bool,
    answers: _Answers,
    command: Sequence[str],
) -> DiedError | None:
    spec = {
        "job": "rows",
        "plugins": [str(file)] if file else [],
        "schemes": [asdict(scheme) for scheme in schemes],
        "add": not again and file is not None,
        "shapes": _shapes(suite),
        "train": suite.train,
        "threads": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.txt")
        try:
            run_worker(spec, log=log, hear=answers.hear, timeout=PLUGIN_SECONDS, command=command)
        except DiedError as death:
            return death
    return None


def _refused_file(suite: Suite, file: Path | None, how: str, left: Mapping[str, Scheme]) -> RefusedError:
    if file is None:
        return RefusedError(f"suite {suite.source}: {how}", [*left])
    text = file.read_text(encoding="utf-8", errors="replace")
    registered = _REGISTERS.findall(text)
    named = [s.label for s in suite.schemes if s.router.partition(":")[0] in registered]
    labels = [label for name in {*named, *registered} for label in labels_of(name, suite)]
    sentence = how if how.startswith("plugin ") else f"plugin {file}: its process ended: {how}"
    return RefusedError(sentence, labels)


def describe_rows(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """Load the plugin of ``spec`` and describe each of its ``schemes``, in events: the ``names`` that it
    registers; the ``label`` of each row before its router is built; what was ``found``.

    Raises:
        UserError: the plugin raises or registers nothing.
    """
    import torch

    from modbench.routing.registry import load_plugin

    torch.set_num_threads(spec["threads"])
    names = [name for file in spec["plugins"] for name in load_plugin(file)]
    named = {scheme["router"].partition(":")[0] for scheme in spec["schemes"]}
    fresh = [name for name in names if name not in named] if spec["add"] else []
    say({"event": "row", "names": names, "fresh": fresh})
    schemes = [*spec["schemes"], *(asdict(Scheme(router=name)) for name in fresh)]
    for scheme in schemes:
        if spec["plugins"] and scheme["router"].partition(":")[0] not in names:
            continue
        say({"event": "row", "label": scheme["label"]})
        found: Any
        try:
            found = describe_row(scheme, spec["shapes"], spec["train"])
        except UserError as error:
            found = str(error)
        say({"event": "row", "label": scheme["label"], "found": found})
    return {}


def describe_row(
    scheme: Mapping[str, Any], shapes: Sequence[Mapping[str, Any]], train: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of `Resolved` of ``scheme``. Imports torch and the router.

    Raises:
        UserError: an unknown router or option, or a wrong value.
    """
    from modbench.routing.registry import build_router, plugin_sha256, preset_options
    from modbench.train.budget import flops_per_step, model_of
    from modbench.train.config import TrainConfig

    name, preset = preset_options(scheme["router"])
    options = build_router(name, {**preset, **scheme["options"]}).options()
    config = TrainConfig(**{**train, **scheme["train"], "budget": 1})
    flops: list[int | str] = []
    for shape in shapes:
        try:
            flops.append(flops_per_step(model_of(name, options, shape), config))
        except UserError as error:
            flops.append(str(error))
    return {"name": name, "options": options, "plugin_sha256": plugin_sha256(name), "flops": flops}
