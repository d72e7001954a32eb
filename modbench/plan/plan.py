"""FLOPs, days and memory per GPU of planned training runs, from shapes and closed forms; nothing is
allocated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modbench.accounting.literature import convention_flops
from modbench.accounting.statement import meta_decoder
from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.sizes import Size
from modbench.plan.gpus import Cluster
from modbench.plan.memory import Measured, Memory, Recipe
from modbench.plan.solver import solve, spent_on


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The run of one scheme, with nominal routing; FLOPs are in the plan's convention. ``dense_flops``:
    those of the dense model of the same shape on the same tokens."""

    name: str
    model: ModelConfig
    parameters: int
    active_parameters: int
    tokens: int
    steps: int
    forward_per_token: float
    training_per_token: float
    flops: int
    dense_flops: int
    days: float
    memory: Memory
    largest_micro_batch: int  #: sequences that fit the GPU's memory; may be 0

    @property
    def ratio_to_dense(self) -> float:
        return self.flops / self.dense_flops


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``batch``: tokens per step on all GPUs. ``budget``: training FLOPs that shapes were solved for;
    None if the shape was given."""

    cluster: Cluster
    recipe: Recipe
    convention: str
    sequence: int
    batch: int
    budget: int | None
    schemes: tuple[Scheme, ...]

    @property
    def accumulated(self) -> int:
        """Micro-batches per GPU and step."""
        return self.batch // (self.cluster.gpus * self.recipe.micro_batch * self.sequence)

    def share_of_card(self, scheme: Scheme) -> float:
        return scheme.memory.total / self.cluster.gpu.memory

    def fits(self, scheme: Scheme) -> bool:
        return scheme.memory.total <= self.cluster.gpu.memory


def plan(
    routers: Sequence[str],
    options: Mapping[str, Any],
    size: Size,
    *,
    tokens: int,
    cluster: Cluster,
    recipe: Recipe,
    batch: int | None = None,
    convention: str = "model",
) -> Plan:
    """Plan the training of each of ``routers`` (``NAME`` or ``NAME:PRESET``) at the shape ``size`` on
    ``tokens`` tokens, ``batch`` tokens per step (by default one micro-batch per GPU).

    Raises:
        UserError: no router or tokens, GPUs or experts that can't be divided, or a batch that is not
            a multiple of the micro-batches of all GPUs.
    """
    if tokens < 1:
        raise UserError(f"tokens is {tokens}; it must be 1 or more")
    planned = [(name, size, tokens) for name in routers]
    return _planned(planned, options, cluster, recipe, batch, convention, size.sequence, None)


def plan_budget(
    routers: Sequence[str],
    options: Mapping[str, Any],
    base: Size,
    *,
    budget: int,
    tokens: int | None = None,
    tokens_per_parameter: float = 20.0,
    cluster: Cluster,
    recipe: Recipe,
    batch: int | None = None,
    convention: str = "model",
) -> Plan:
    """As `plan`, with each scheme at the shape like ``base`` that spends ``budget`` training FLOPs on
    ``tokens`` tokens, by default ``tokens_per_parameter`` per active parameter.

    Raises:
        UserError: as `plan`, and as `modbench.plan.solver.solve`.
    """
    solved = [
        solve(
            name,
            options,
            base,
            budget=budget,
            tokens=tokens,
            tokens_per_parameter=tokens_per_parameter,
            convention=convention,
        )
        for name in routers
    ]
    planned = [(one.router, one.size, one.tokens) for one in solved]
    return _planned(planned, options, cluster, recipe, batch, convention, base.sequence, budget)


def _planned(
    planned: Sequence[tuple[str, Size, int]],
    options: Mapping[str, Any],
    cluster: Cluster,
    recipe: Recipe,
    batch: int | None,
    convention: str,
    sequence: int,
    budget: int | None,
) -> Plan:
    if not planned:
        raise UserError("a plan needs one router or more; for example vanilla and mod")
    recipe.fits_on(cluster.gpus)
    at_once = cluster.gpus * recipe.micro_batch * sequence
    batch = at_once if batch is None else batch
    if batch < 1 or batch % at_once:
        raise UserError(
            f"batch is {batch:,} tokens; it must be a multiple of {at_once:,}, for {cluster.gpus} gpus "
            f"take {recipe.micro_batch} x {sequence} tokens each at a time"
        )
    schemes = tuple(
        _scheme(name, options, size, tokens, cluster, recipe, batch, convention)
        for name, size, tokens in planned
    )
    return Plan(
        cluster=cluster,
        recipe=recipe,
        convention=convention,
        sequence=sequence,
        batch=batch,
        budget=budget,
        schemes=schemes,
    )


def _scheme(
    name: str,
    options: Mapping[str, Any],
    size: Size,
    tokens: int,
    cluster: Cluster,
    recipe: Recipe,
    batch: int,
    convention: str,
) -> Scheme:
    sequence = size.sequence
    routed, dense = meta_decoder(name, options, size.model), meta_decoder("vanilla", {}, size.model)
    # Only convention ``executed`` counts the recomputation of checkpointed layers.
    training = Workload.uniform(1, sequence, "train", checkpoint=recipe.checkpoint)
    of_sequence = convention_flops(routed, training, convention)
    flops = spent_on(tokens, of_sequence, sequence)
    measured = Measured(routed, sequence, recipe)
    return Scheme(
        name=name,
        model=size.model,
        parameters=routed.parameter_count("total"),
        active_parameters=routed.parameter_count("active"),
        tokens=tokens,
        steps=-(-tokens // batch),
        forward_per_token=convention_flops(routed, Workload.uniform(1, sequence), convention) / sequence,
        training_per_token=of_sequence / sequence,
        flops=flops,
        dense_flops=spent_on(tokens, convention_flops(dense, training, convention), sequence),
        days=cluster.days(flops),
        memory=measured.memory(recipe.micro_batch),
        largest_micro_batch=measured.largest_micro_batch(cluster.gpu.memory),
    )
