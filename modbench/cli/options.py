"""Option types that several commands share."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tyro.conf import Positional, UseAppendAction, arg

from modbench.errors import UserError

T = TypeVar("T")

#: Options with several values take them after one flag or after repeated flags; see `flat`.
Several = Annotated[tuple[tuple[T, ...], ...], UseAppendAction]
Plugins = Annotated[Several[Path], arg(metavar="FILE ...", help_behavior_hint="")]
Routers = Annotated[Several[str], arg(metavar="NAME[:PRESET] ...", help_behavior_hint="")]
RouterOptions = Annotated[Several[str], arg(metavar="NAME=VALUE ...", help_behavior_hint="")]
Labels = Annotated[Several[str], arg(metavar="LABEL ...", help_behavior_hint="")]
#: Names of tasks, also joined by commas; see `names_of`.
Tasks = Annotated[Several[str], arg(metavar="NAME[,NAME...] ...", help_behavior_hint="")]
#: Outside names that records may use; see `modbench.evaluate.outside`.
Allow = Annotated[Several[str], arg(metavar="NAME ...", help_behavior_hint="")]
Suite = Annotated[Positional[str], arg(metavar="SUITE")]
#: A trained model: SUITE/LABEL@BUDGET#SEED in the results folder, or a path of `modbench.load`.
Run = Annotated[Positional[str], arg(metavar="RUN")]
Results = Annotated[Path, arg(metavar="DIR")]
#: Settings in place of those of a suite file; see `suite_settings`.
Settings = Annotated[Several[str], arg(metavar="TABLE.KEY=VALUE ...", help_behavior_hint="")]
Requests = Annotated[Several[str], arg(metavar="NAME=VALUE ...", help_behavior_hint="")]
Seeds = Annotated[str | None, arg(metavar="SEED[,SEED...]", help_behavior_hint="")]
Budgets = Annotated[str | None, arg(metavar="FLOPS[,FLOPS...]", help_behavior_hint="")]
#: Numbers whose help text says what holds by default.
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Amount = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Folder of trained runs, and their plugins."""

    results: Results = Path("my-results")  #: folder that holds one folder per suite
    plugin: Plugins = ()  #: Python files that register routers

    @property
    def plugins(self) -> tuple[Path, ...]:
        return flat(self.plugin)


@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """Results, routers, and values in place of those of the suite file."""

    results: Results = Path("my-results")  #: folder that holds one folder per suite
    #: Python files that register routers, or names of installed ones; a router that the suite does not
    #: name gets a row
    plugin: Plugins = ()
    #: label of the row whose `model` and `train` an added row gets; by default that of its kind
    like: Annotated[str | None, arg(metavar="LABEL", help_behavior_hint="")] = None
    #: labels of rows, or names of runs such as mod@1e12#0; by default all
    only: Labels = ()
    #: settings in place of those of the suite file, such as train.learning_rate=3e-3
    set: Settings = ()
    seeds: Seeds = None  #: seeds in place of the suite's, such as 0,1
    budget: Budgets = None  #: training FLOPs of a run in place of the suite's, such as 1e12

    def asked(self, suite: str) -> dict[str, Any]:
        """The fields of `modbench.sweep.request.SuiteRequest` for ``suite``. Raises UserError: see
        `suite_settings`."""
        return {
            "name": suite,
            "results": self.results,
            "settings": suite_settings(self.set, self.seeds, self.budget),
            "plugins": flat(self.plugin),
            "like": self.like,
            "only": flat(self.only),
        }


def flat(values: Iterable[Iterable[T]]) -> tuple[T, ...]:
    """Join the values of repeated flags."""
    return tuple(chain.from_iterable(values))


def names_of(values: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Join the values of repeated flags, and split them at commas."""
    return tuple(name for group in flat(values) for name in group.split(",") if name)


def parsed_options(
    groups: Iterable[Sequence[str]], flag: str = "--option", example: str = "capacity=0.25"
) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` pairs of ``flag``; each value is TOML, or a string where it is not valid
    TOML. Raises UserError: a pair without a name or "=", or a name that is given twice."""
    options: dict[str, Any] = {}
    for pair in flat(groups):
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"{flag} {pair}: it must be NAME=VALUE, such as {example}")
        if name in options:
            raise UserError(f"{flag} {name} is given twice; give it once")
        options[name] = _toml(value)
    return options


def suite_settings(
    set: Iterable[Sequence[str]], seeds: str | None, budget: str | None
) -> dict[str, Any]:
    """The settings that ``--set``, ``--seeds`` and ``--budget`` give in place of those of the suite
    file, by "TABLE.KEY". Raises UserError: see `parsed_options`; or a setting is given twice."""
    settings = parsed_options(set, "--set", "train.learning_rate=3e-3")
    given = (("--seeds", "seeds", seeds, "0,1"), ("--budget", "budgets", budget, "1e12"))
    for flag, key, value, example in given:
        if value is None:
            continue
        if f"sweep.{key}" in settings:
            raise UserError(f"{flag} and --set sweep.{key} are both given; leave one of them out")
        settings[f"sweep.{key}"] = values = _toml(f"[{value}]")
        if not isinstance(values, list) or not all(
            isinstance(number, int | float) and float(number).is_integer() for number in values
        ):
            raise UserError(f"{flag} {value}: whole numbers are expected, such as {example}")
    return settings


def requested(pairs: Iterable[str]) -> dict[str, str]:
    """The settings NAME=VALUE of ``pairs``; NAME alone has an empty value. Raises UserError: one is no
    such pair, or is given twice."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        name = name.removeprefix("--")
        if not name or "\n" in pair:
            raise UserError(
                f"--request {pair}: it must be NAME=VALUE, such as partition=gpu, or NAME alone"
            )
        if name in settings:
            raise UserError(f"--request {name} is given twice; give it once")
        settings[name] = value
    return settings


def _toml(text: str) -> Any:
    """The TOML value ``text``; the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):  # no TOML, or too deeply nested
        return text
