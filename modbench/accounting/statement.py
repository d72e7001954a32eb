"""What a model spends, stated from the closed forms alone: nothing is allocated, nothing runs, unless a
witness is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modbench.accounting.literature import ALL_CONVENTIONS, Reading, check_known, literature_flops
from modbench.errors import FAULTS, UserError
from modbench.ledger import CONVENTIONS, Direction, Ledger, Workload
from modbench.model.config import ModelConfig

if TYPE_CHECKING:
    from modbench.routing.build import RoutedDecoder


@dataclass(frozen=True, kw_only=True)
class Statement:
    """FLOPs of one model under one convention, with nominal routing. ``components`` has forward,
    backward and recompute of each; it is empty under the literature's conventions, which know none.
    ``conventions`` holds the total under every convention, ``profiled`` what the counter saw, where they
    were asked for."""

    name: str
    workload: Workload
    convention: str
    flops: int
    components: Mapping[str, Mapping[Direction, int]]
    parameters: int
    active_parameters: int
    dense_flops: int
    conventions: Mapping[str, int] = field(default_factory=dict)
    profiled: int | None = None
    described: Mapping[str, Any] = field(default_factory=dict)  #: the model's shape and options, in full

    @property
    def flops_per_token(self) -> float:
        return self.flops / self.workload.tokens

    @property
    def ratio_to_dense(self) -> float:
        """To the dense model of the same shape."""
        return self.flops / self.dense_flops


def check_convention(convention: str, *, profile: bool) -> None:
    """
    Raises:
        UserError: an unknown convention, or a witness of one that nothing executes.
    """
    check_known(convention)
    if profile and convention not in CONVENTIONS:
        raise UserError(
            f"convention '{convention}' is a formula, and --profile counts what runs; "
            f"use one of {', '.join(CONVENTIONS)}"
        )


def stated(
    name: str,
    ledger: Ledger,
    reading: Reading,
    dense: tuple[Ledger, Reading],
    workload: Workload,
    convention: str,
    *,
    compare: bool = False,
    profiled: int | None = None,
    described: Mapping[str, Any],
) -> Statement:
    """The statement of one model from its ledger and what papers' formulas read off it; ``dense`` the
    same of the dense model of its shape."""

    def total(of: Ledger, read: Reading, convention: str) -> int:
        if convention in CONVENTIONS:
            return of.total(convention)
        return literature_flops(convention, read, workload)

    components: dict[str, dict[Direction, int]] = {}
    if convention in CONVENTIONS:
        for (_, component, direction), flops in ledger:
            spent = components.setdefault(component, {"forward": 0, "backward": 0, "recompute": 0})
            spent[direction] += flops.under(convention)
    return Statement(
        name=name,
        workload=workload,
        convention=convention,
        flops=total(ledger, reading, convention),
        components=components,
        parameters=reading.parameters,
        active_parameters=reading.active_parameters,
        dense_flops=total(*dense, convention),
        conventions={c: total(ledger, reading, c) for c in ALL_CONVENTIONS} if compare else {},
        profiled=profiled,
        described=described,
    )


def router_statement(
    router: str,
    options: Mapping[str, Any],
    model: ModelConfig,
    workload: Workload,
    convention: str,
    *,
    name: str = "",
    compare: bool = False,
    profile: bool = False,
) -> Statement:
    """A router (``NAME`` or ``NAME:PRESET``) beside the dense decoder of the same shape; ``profile``
    runs it on the meta device under the counter.

    Raises:
        UserError: an unknown router, preset, option or convention, or a shape that can't be.
    """
    from modbench.accounting.literature import reading

    check_convention(convention, profile=profile)
    routed, dense = meta_decoder(router, options, model), meta_decoder("vanilla", {}, model)
    profiled = None
    if profile:
        profiled = _profiled(routed, workload, convention)
    return stated(
        name or router,
        routed.ledger(workload),
        reading(routed),
        (dense.ledger(workload), reading(dense)),
        workload,
        convention,
        compare=compare,
        profiled=profiled,
        described={
            "router": routed.router.name,
            "options": routed.router.options(),
            "shape": asdict(model),
        },
    )


def _profiled(model: Any, workload: Workload, convention: str) -> int:
    """What the counter sees of a load whose sequences are all alike."""
    from modbench.accounting.count import count

    inputs = (workload.sequences, workload.lengths[0])
    try:
        counted = count(model, inputs, phase=workload.phase, past=workload.past[0])
    except UserError:
        raise
    except FAULTS as error:  # a router's own code runs here
        raise UserError(
            f"--profile: the model raised {type(error).__name__} on the meta device, where nothing has "
            f"values ({' '.join(str(error).split())[:200]}); mend it, or leave --profile out"
        ) from error
    return counted.ledger.total(convention)


def meta_decoder(router: str, options: Mapping[str, Any], model: ModelConfig) -> "RoutedDecoder":
    """The decoder of ``router`` (``NAME`` or ``NAME:PRESET``) with shapes and no values."""
    import torch

    from modbench.routing.build import RoutedDecoder
    from modbench.routing.registry import build_router, preset_options

    plain, preset = preset_options(router)
    with torch.device("meta"):
        return RoutedDecoder(model, build_router(plain, {**preset, **options}))


def family_statement(
    config: Mapping[str, Any],
    workload: Workload,
    convention: str,
    *,
    name: str,
    compare: bool = False,
    profile: bool = False,
) -> Statement:
    """A Hugging Face causal LM from its configuration, beside its dense twin, which has an MLP of the
    configuration's ``intermediate_size`` in place of experts. Loads torch
    only if ``profile`` asks for the counter.

    Raises:
        UserError: a configuration that is none, or of no known family, or an unknown convention.
    """
    from modbench.accounting.families import family_ledger, family_reading

    check_convention(convention, profile=profile)
    profiled = None
    if profile:
        profiled = _profiled(config, workload, convention)
    return stated(
        name,
        family_ledger(config, workload),
        family_reading(config),
        (family_ledger(config, workload, dense=True), family_reading(config, dense=True)),
        workload,
        convention,
        compare=compare,
        profiled=profiled,
        described={"config": dict(config)},
    )


def differing(statements: Sequence[Statement]) -> list[Statement]:
    """Those whose counter saw something else than the closed form says."""
    return [s for s in statements if s.profiled is not None and s.profiled != s.flops]
