"""The table of ``docs/conventions.md``: the error of each convention on our schemes."""

from collections.abc import Iterator

from modbench.accounting.literature import ALL_CONVENTIONS, flops_under, reading
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.sizes import SIZES, Size
from modbench.routing.build import meta_decoder

SCHEMES = ("vanilla", "token_choice", "expert_choice", "mod", "mode_staged", "mode_integrated")
GPT2 = Size(
    model=ModelConfig(vocabulary=50_257, width=768, layers=12, heads=12, mlp="gelu"), sequence=1024
)
#: A small Mixtral: grouped keys, an untied head, and two experts per token as wide as a dense MLP.
MIXTRAL = SIZES["124M"]
#: Name and size of a shape, router and its options.
CASES: tuple[tuple[str, Size, str, dict[str, int]], ...] = (
    *(("124M", SIZES["124M"], router, {}) for router in SCHEMES),
    *(("GPT-2", GPT2, router, {}) for router in ("vanilla", "mod")),
    ("Mixtral-like", MIXTRAL, "token_choice", {"expert_width": MIXTRAL.model.hidden}),
)


def training_flops(size: Size, router: str, options: dict[str, int]) -> dict[str, int]:
    """The FLOPs of a training step on one sequence by convention; nominal routing."""
    decoder = meta_decoder(router, options, size.model)
    workload = Workload.uniform(1, size.sequence, "train")
    ledger, sizes = decoder.ledger(workload), reading(decoder)
    return {name: flops_under(name, ledger, sizes, workload) for name in ALL_CONVENTIONS}


def error_table() -> Iterator[str]:
    """Errors of a training step against `full` in per cent; ``=``: equal to the last digit."""
    others = [convention for convention in ALL_CONVENTIONS if convention != "full"]
    yield f"| model | {' | '.join(f'`{name}`' for name in others)} |"
    yield "| --- |" + " ---: |" * len(others)
    for name, *case in CASES:
        flops = training_flops(*case)
        cells = (_error(flops[convention], flops["full"]) for convention in others)
        yield f"| {case[1]}, {name} | {' | '.join(cells)} |"


def _error(value: int, truth: int) -> str:
    return "=" if value == truth else f"{100 * (value - truth) / truth:+.1f}"
