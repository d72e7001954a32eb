"""Writes the tables of ``docs/conventions.md``: the error of each convention on our schemes.
``nox -s flops`` compares; ``python tools/conventions_page.py`` writes.

The definitions above the tables are written by hand.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modbench.accounting.literature import ALL_CONVENTIONS, Reading, flops_under, reading
from modbench.ledger import Phase, Workload
from modbench.model.config import ModelConfig
from modbench.model.sizes import SIZES, Size
from modbench.routing.build import meta_decoder

PAGE = Path(__file__).parents[1] / "docs" / "conventions.md"
REGENERATE = "python tools/conventions_page.py"
ERRORS = "## Errors"
CLOSING = f"""
## Regenerating

`{REGENERATE}` writes this page; `--check` writes nothing and exits with 1 if the page \
differs.
"""
PHASES: tuple[Phase, ...] = ("forward", "train")
SCHEMES = ("vanilla", "token_choice", "expert_choice", "mod", "mode_staged", "mode_integrated")

#: Table A9 of Hoffmann et al. 2022.
CHINCHILLA_217M = Size(
    model=ModelConfig(vocabulary=32_000, width=896, layers=18, heads=14, mlp="gelu"), sequence=2048
)
GPT2 = Size(
    model=ModelConfig(vocabulary=50_257, width=768, layers=12, heads=12, mlp="gelu"), sequence=1024
)
#: A small Mixtral: grouped keys, an untied head, and two experts per token as wide as a dense MLP.
MIXTRAL = SIZES["124M"]
SHAPES = {"124M": SIZES["124M"], "217M": CHINCHILLA_217M, "GPT-2": GPT2, "Mixtral-like": MIXTRAL}

#: Shape, router and its options.
CASES: tuple[tuple[str, str, dict[str, int]], ...] = (
    *(("124M", router, {}) for router in SCHEMES),
    *(("217M", router, {}) for router in SCHEMES),
    ("GPT-2", "vanilla", {}),
    ("GPT-2", "mod", {}),
    ("Mixtral-like", "token_choice", {"expert_width": MIXTRAL.model.hidden}),
)


@dataclass(frozen=True)
class Row:
    """Sizes of one model, and its FLOPs by phase and convention on one sequence; nominal routing."""

    name: str
    sizes: Reading
    flops: dict[tuple[Phase, str], int]


def measure(shape: str, router: str, options: dict[str, int]) -> Row:
    decoder = meta_decoder(router, options, SHAPES[shape].model)
    sizes, flops = reading(decoder), {}
    for phase in PHASES:
        workload = Workload.uniform(1, SHAPES[shape].sequence, phase)
        ledger = decoder.ledger(workload)
        for convention in ALL_CONVENTIONS:
            flops[phase, convention] = flops_under(convention, ledger, sizes, workload)
    return Row(f"{router}, {shape}", sizes, flops)


def page() -> str:
    """Return the whole page: its definitions, which are written by hand, and the computed tables."""
    definitions = PAGE.read_text().partition(f"\n{ERRORS}\n")[0]
    rows = [measure(*case) for case in CASES]
    return "\n".join([definitions, *_models(rows), *_errors(rows), CLOSING])


def _models(rows: Sequence[Row]) -> Iterator[str]:
    yield from (ERRORS, "")
    yield (
        "One sequence. Options are at their defaults; routing is nominal. The Mixtral-like model sends "
        "each token to two experts, each as wide as its dense MLP. 217M is the name of Hoffmann et al. "
        "2022 (Table A9) for 13 L d^2 + V d parameters, which include a matrix of relative positions "
        "per layer. Rotary positions have no parameters, so 202M remain here."
    )
    yield ""
    yield _row("shape", "L x d", "heads, key heads", "MLP", "V", "head", "S")
    yield "| --- | --- | --- | --- | ---: | --- | ---: |"
    yield from (_shape(name, size) for name, size in SHAPES.items())
    yield ""
    yield _row("model", "parameters", "active", "`full`, forward", "`full`, training")
    yield "| --- | ---: | ---: | ---: | ---: |"
    for row in rows:
        spent = (row.flops[phase, "full"] for phase in PHASES)
        numbers = (row.sizes.parameters, row.sizes.active_parameters, *spent)
        yield _row(row.name, *(f"{number:,}" for number in numbers))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _shape(name: str, size: Size) -> str:
    model = size.model
    return _row(
        name,
        f"{model.layers} x {model.width}",
        f"{model.heads}, {model.key_heads}",
        f"{model.mlp} {model.hidden}",
        f"{model.vocabulary:,}",
        "tied" if model.tied_head else "untied",
        f"{size.sequence:,}",
    )


def _errors(rows: Sequence[Row]) -> Iterator[str]:
    others = [convention for convention in ALL_CONVENTIONS if convention != "full"]
    yield from (
        "",
        "Error of a training step against `full` in per cent; `=`: equal to the last digit.",
        "",
    )
    yield _row("model", *(f"`{name}`" for name in others))
    yield "| --- |" + " ---: |" * len(others)
    for row in rows:
        right = row.flops["train", "full"]
        yield _row(row.name, *(_error(row.flops["train", name], right) for name in others))


def _error(value: int, truth: int) -> str:
    return "=" if value == truth else f"{100 * (value - truth) / truth:+.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/conventions.md.")
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    only_check = parser.parse_args().check
    text = page()
    if not only_check:
        PAGE.write_text(text)
        return 0
    if PAGE.read_text() == text:
        return 0
    print(f"{PAGE.name} is not what the code says now; run {REGENERATE}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
