"""Tables of a suite file: [suite], [sweep], [keep] and [[compare]]; and the schedule
of [train]. Imports no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from modbench.errors import UserError, known_names
from modbench.measure.config import MeasureConfig
from modbench.records.metrics import ranking_metric
from modbench.records.names import NAME
from modbench.train.config import TrainTable
from modbench.typed import Positive


@dataclass(frozen=True, kw_only=True)
class Header:
    """The [suite] table."""

    name: str  #: also the name of its folder in the results folder
    version: int = 1  #: raised when the suite's meaning changes
    description: str = ""  #: one sentence, shown by `modbench list suites`
    rank_by: str = "heldout_loss"  #: the metric that ranks the table

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(
                f"name is {self.name!r}; it becomes a folder's name: lower-case letters, digits, "
                "'_', '-' and '.', starting with a letter or a digit"
            )
        ranking_metric(self.rank_by)


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The [sweep] table: each scheme runs at each budget (training FLOPs) with each seed."""

    budgets: tuple[int, ...]  #: training FLOPs of a run, convention `model`; 1e13 is an integer here
    seeds: tuple[int, ...] = (0,)  #: of the initial weights and of the order of the data
    cell_timeout: float = 1800.0  #: seconds without progress after which a run's process is ended

    def __post_init__(self) -> None:
        if self.cell_timeout <= 0:
            raise UserError(f"cell_timeout is {self.cell_timeout}; it must be above 0 seconds")
        _check_distinct("budgets", self.budgets)
        check_seeds(self.seeds)


def _check_distinct(name: str, values: tuple[int, ...]) -> None:
    if not values:
        raise UserError(f"{name} is empty; give it at least one entry")
    if len(set(values)) < len(values):
        raise UserError(f"{name} is {list(values)}; an entry appears twice, remove one")


def check_seeds(seeds: tuple[int, ...]) -> None:
    _check_distinct("seeds", seeds)
    if min(seeds) < 0 or max(seeds) >= 2**32:
        raise UserError(f"seeds is {list(seeds)}; a seed must lie in [0, 2**32)")


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """The [keep] table."""

    #: weights that stay after a run was measured, so that more can be measured later: of its budgets;
    #: all, with those of the points of its learning curve; or none
    weights: Literal["budgets", "all", "none"] = "budgets"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One difference: the loss of row ``a`` minus that of row ``b``."""

    a: str  #: a row: a scheme's label; with [[shapes]] LABEL/SHAPE
    b: str  #: the row that is subtracted
    #: a secondary comparison has a correction of its own for the number of comparisons (Holm)
    role: Literal["primary", "secondary"] = "primary"
    #: difference in nats per token within which the two are equivalent; None: not tested
    margin: Positive | None = None
    budget: int | None = None  #: one of [sweep] budgets; None: each of them
    depth: int | None = None  #: with [isoflop] layers, the depth of both; None: each at its best depth


def check_comparisons(
    where: str,
    comparisons: Sequence[Comparison],
    depths: dict[str, set[int | None]],
    budgets: Sequence[int],
) -> None:
    """Raises UserError: a row, budget or depth that the suite does not have, a row with itself, or two
    comparisons of the same. ``depths``: of each row; ``where``: the start of the sentence."""
    seen = set[tuple[frozenset[str], int, int | None]]()
    for number, pair in enumerate(comparisons, start=1):
        at = f"{where} [[compare]] {number}"
        for key in ("a", "b"):
            if (label := getattr(pair, key)) not in depths:
                raise UserError(
                    f"{at} {key} is '{label}', which is no row; {known_names(label, depths)}"
                )
        if pair.a == pair.b:
            raise UserError(f"{at} compares '{pair.a}' with itself; name another row")
        if pair.budget is not None and pair.budget not in budgets:
            raise UserError(f"{at} budget is {pair.budget:g}, which [sweep] budgets lacks; add it there")
        for label in (pair.a, pair.b):
            if pair.depth is not None and pair.depth not in depths[label]:
                raise UserError(
                    f"{at} depth is {pair.depth}, at which '{label}' has no curve; remove it"
                )
        for stated in stated_comparisons([pair], budgets):
            same = (frozenset((pair.a, pair.b)), stated["budget"], pair.depth)
            if same in seen:
                raise UserError(f"{at} compares '{pair.a}' with '{pair.b}' a second time; remove it")
            seen.add(same)


def stated_comparisons(pairs: Sequence[Comparison], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """The ``pairs`` at each budget, as the record of a suite states them."""
    fields = [
        asdict(pair) | {"budget": budget}
        for pair in pairs
        for budget in ([pair.budget] if pair.budget else budgets)
    ]
    return [{key: value for key, value in pair.items() if value is not None} for pair in fields]


def check_schedule(
    at: str, train: TrainTable, budgets: Sequence[int], measure: MeasureConfig, keep: str
) -> None:
    """Raises UserError: the schedule has no place in the suite, or micro-batches don't make a batch."""
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
        train.schedule_of(budgets if train.schedule == "trapezoid" else budgets[:1])
    except UserError as error:
        raise UserError(f"{at}: {error}") from error
    if train.schedule == "trapezoid" and measure.downstream_checkpoints is not None:
        raise UserError(
            f"{at} schedule is 'trapezoid', and [measure] downstream_checkpoints needs 'cosine'; remove "
            "one of them"
        )
    if train.schedule == "trapezoid" and keep == "all":
        raise UserError(
            f"{at} schedule is 'trapezoid', whose decays' points can't all be kept; set [keep] "
            "weights = 'budgets', or schedule = 'cosine'"
        )
