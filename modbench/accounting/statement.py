"""States what a model spends by its closed form, without allocating or running it; and, if asked, what
counters see when it runs on the meta device."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from modbench.accounting.literature import ALL_CONVENTIONS, Reading, check_known, flops_under, reading
from modbench.errors import FAULTS, UserError
from modbench.ledger import CONVENTIONS, Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.routing.plugin_fault import raised

#: A model's ledger, and what the papers' formulas read off it.
Model = tuple[Ledger, Reading]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Statement of FLOPs: under one ``convention``, or compared under all; ``profile`` also counts
    them as the model runs, which no paper's formula allows."""

    convention: str = "model"
    compare: bool = False
    profile: bool = False

    def __post_init__(self) -> None:
        check_known(self.convention)
        if self.profile and self.convention not in CONVENTIONS:
            raise UserError(
                f"convention '{self.convention}' is a formula, and --profile counts what runs; "
                f"use one of {', '.join(CONVENTIONS)}"
            )


@dataclass(frozen=True, kw_only=True)
class Statement:
    """FLOPs of one model under one convention, with nominal routing. ``components`` is empty under the
    conventions of papers, ``conventions`` has the totals under all. ``counters``: what each counter
    reports, or why it reports nothing."""

    name: str
    workload: Workload
    convention: str
    flops: int
    components: Mapping[str, int]
    parameters: int
    active_parameters: int
    dense_flops: int
    conventions: Mapping[str, int]
    counters: Mapping[str, int | str]
    described: Mapping[str, Any]  #: the model's shape and options
    source: str = "closed form"  #: how the FLOPs were found; ``counted`` if a layer has no closed form

    def difference(self, counter: str) -> float | None:
        """Per cent by which ``counter`` differs from the closed form."""
        counted = self.counters[counter]
        return 100 * (counted - self.flops) / self.flops if isinstance(counted, int) else None


def _stated(
    built: Any, model: Model, dense: Model, workload: Workload, asked: Asked, **others: Any
) -> Statement:
    has_components = asked.convention in CONVENTIONS
    compared = ALL_CONVENTIONS if asked.compare else ()
    return Statement(
        workload=workload,
        convention=asked.convention,
        flops=flops_under(asked.convention, *model, workload),
        components=model[0].by_component(asked.convention) if has_components else {},
        parameters=model[1].parameters,
        active_parameters=model[1].active_parameters,
        dense_flops=flops_under(asked.convention, *dense, workload),
        conventions={name: flops_under(name, *model, workload) for name in compared},
        counters=_counters(built, workload, asked) if asked.profile else {},
        **others,
    )


def router_statement(
    router: str,
    options: Mapping[str, Any],
    model: ModelConfig,
    workload: Workload,
    asked: Asked,
) -> Statement:
    """State a router (``NAME`` or ``NAME:PRESET``) next to the dense decoder of the same shape. Raise a
    `UserError` if its name or an option is unknown, or the shape impossible."""
    from modbench.routing.build import meta_decoder

    routed, dense = meta_decoder(router, options, model), meta_decoder("vanilla", {}, model)
    described = {"router": routed.router.name, "options": routed.router.options()}
    return _stated(
        routed,
        (routed.ledger(workload), reading(routed)),
        (dense.ledger(workload), reading(dense)),
        workload,
        asked,
        name=router,
        described={**described, "shape": asdict(model)},
        source=routed.flops_source,
    )


def family_statement(
    config: Mapping[str, Any], workload: Workload, asked: Asked, *, name: str
) -> Statement:
    """State a Hugging Face causal LM next to its dense variant, which has an MLP of the config's
    ``intermediate_size`` in place of experts. Loads torch only to profile. Raise a `UserError` if the
    family is unknown or the config impossible."""
    from modbench.hf.families import family_ledger, family_reading

    model, dense = (
        (family_ledger(config, workload, dense=twin), family_reading(config, dense=twin))
        for twin in (False, True)
    )
    return _stated(config, model, dense, workload, asked, name=name, described={"config": dict(config)})


def _counters(model: Any, workload: Workload, asked: Asked) -> dict[str, int | str]:
    from modbench.accounting.count import count
    from modbench.accounting.other_counters import other_counts

    inputs = (workload.sequences, workload.lengths[0])
    phase = workload.phase
    past = workload.past[0]
    try:
        counted = count(model, inputs, phase=phase, past=past)
    except UserError:
        raise
    except FAULTS as error:  # a router's own code runs here
        what = raised(error, "a run on the meta device", "fix it, or leave --profile out")
        raise UserError(f"--profile: the model {what}") from error
    ours = counted.ledger.total(asked.convention)
    return {"modbench": ours, **other_counts(model, inputs, phase, past)}
