"""Writes the tables and sentences of ``docs/depth.md`` from the committed results of the suite
isoflop-depth: ``python tools/depth_page.py``; ``--check`` compares only.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from depth_runs import (
    FOLDER,
    MOD,
    RANDOM,
    depth_effect,
    fitted,
    in_cell,
    left,
    misfit,
    missing,
    noise,
    processors,
    rates_in_words,
    rates_table,
    same_runs,
    scatters,
    what_if_in_words,
    what_if_table,
)
from results_prose import (
    NAMES,
    VERDICTS,
    Line,
    budget_name,
    listed,
    lower_or_higher,
    pair,
)
from suite_keys import filled

from modbench.analysis.isoflop import FITS
from modbench.plan.gpus import Cluster
from modbench.report.isoflop.sweep import DENSE, HEADLINE
from modbench.report.table import Table
from modbench.sweep.plan import plan_suite
from modbench.sweep.suite import load_suite

PAGE = Path(__file__).parents[1] / "docs" / "depth.md"
FIT_NAMES = {"parabola": "the parabola", "akima": "Akima interpolation", "surface": "the surface"}
MAIN = 4  #: layers of the schemes of the main page
#: The suite that asks the question at larger budgets.
NEXT = "isoflop-depth-gpu"


def read(name: str) -> list[Line]:
    with (FOLDER / name).open(newline="") as file:
        return list(csv.DictReader(file))


def optima(fit: str = HEADLINE) -> dict[tuple[float, str], Line]:
    """The optima of ``fit`` at the best depth, by budget and scheme, the smallest budget first."""
    lines = [line for line in read("optima.csv") if line["fit"] == fit and line["loss"]]
    found = {(float(line["budget"]), line["scheme"]): line for line in lines}
    return dict(sorted(found.items()))


def depths_of(line: Line) -> list[str]:
    """The depths among which the scheme chose; one that stands alone is no choice."""
    return sorted(line["layers_compared"].split(), key=int) or [line["layers"]]


def chosen(scheme: str, other: str) -> list[Line]:
    """The differences of two schemes at budgets where both have a choice of depths."""
    lines = optima()
    return [
        line
        for line in pair(read("differences.csv"), scheme, other)
        if line["budget"]
        and line["family"] in ("dense", "other pairs")
        and all(len(depths_of(lines[float(line["budget"]), name])) > 1 for name in (scheme, other))
    ]


def at_depths(scheme: str, other: str) -> list[Line]:
    """The differences of two schemes at equal depth."""
    lines = [
        line
        for line in pair(read("differences.csv"), scheme, other)
        if line["budget"] and line["family"].endswith("equal depth")
    ]
    return sorted(lines, key=lambda line: (int(line["layers"]), float(line["budget"])))


def verdicts(lines: Sequence[Line], other: str) -> str:
    """Verdicts by budget, and the differences behind them."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(line["verdict"], []).append(budget_name(float(line["budget"])))
    said = [f"{VERDICTS[verdict]} {NAMES[other]} at {listed(of)}" for verdict, of in groups.items()]
    each = [
        f"{lower_or_higher(line)} at {budget_name(float(line['budget']))}, adjusted p "
        f"{float(line['p_adjusted']):.2g}"
        for line in lines
    ]
    return f"{', and '.join(said)} FLOPs: its loss is {'; '.join(each)}"


def interval(line: Line, name: str) -> str:
    return (
        f"{float(line[name]):.4f} [{float(line[f'{name}_low']):.4f}, {float(line[f'{name}_high']):.4f}]"
    )


def answer() -> str:
    """Sentences on MoD and dense at the best depth and at equal depth, and on MoD and its control. The
    verdicts of the main page's depth are those of that page, which compares more schemes."""
    sentences = []
    if lines := chosen(MOD, DENSE):
        sentences.append(f"Each at its own best depth, Mixture-of-Depths is {verdicts(lines, DENSE)}.")
    for depth, lines in other_depths(MOD, DENSE):
        sentences.append(f"Both with {depth} layers, it is {verdicts(lines, DENSE)}.")
    if lines := chosen(MOD, RANDOM):
        sentences.append(f"Each at its own best depth, it is {verdicts(lines, RANDOM)}.")
    for depth, lines in other_depths(MOD, RANDOM):
        sentences.append(f"Both with {depth} layers, it is {verdicts(lines, RANDOM)}.")
    return "\n".join(f"{number}. {text}" for number, text in enumerate(sentences, start=1))


def sense() -> str:
    """The meaning of the answer for a reader: gains at one depth and not at the best one. The verdicts
    of the main page's depth are those of that page."""
    undecided = {line["budget"] for line in chosen(MOD, DENSE) if line["verdict"] == "undecided"}

    def gains_of(scheme: str) -> Iterator[str]:
        for depth, lines in other_depths(scheme, DENSE):
            of = [line["budget"] for line in lines if line["verdict"] == "better"]
            if budgets := [budget_name(float(budget)) for budget in of if budget in undecided]:
                yield f"with {depth} layers at {listed(budgets)} FLOPs"

    text = []
    if gains := [*gains_of(MOD)]:
        text.append(
            "A gain at a fixed depth is no gain by itself: by the parabolas (other fits and a larger "
            f"noise stand below), letting tokens skip layers helps {listed(gains)}; where each scheme "
            "has the depth that suits it, these runs cannot tell it from the dense model."
        )
        if shared := [of for of in gains_of(RANDOM) if of in gains]:
            text.append(
                f"Random routing is better than the dense model {listed(shared)}, too, so the gain does "
                "not show that a learned selection matters."
            )
    return " ".join(text) or "The verdicts at a fixed depth and at the best depth do not differ in kind."


def in_two_sentences(link: str) -> Iterator[str]:
    """The answer for README and the main page of results: MoD and dense each at its own best depth, and
    at the deepest shapes that both have. ``link``: to this page."""
    if lines := chosen(MOD, DENSE):
        yield (
            "With the number of layers varied, each at its own best depth, Mixture-of-Depths is "
            f"{verdicts(lines, DENSE)} ([what a fixed depth means]({link}))."
        )
    depth, lines = [*by_depth(MOD, DENSE).items()][-1]
    spreads = [scatters(float(line["budget"]))[depth].sd for line in lines]
    misses = ""
    if max(spreads) > noise():
        misses = (
            f"; the parabolas miss these curves by up to {max(spreads):.4f} nats, where the noise of a "
            f"run is {noise():.4f}"
        )
    yield f"With {depth} layers for both, it is {verdicts(lines, DENSE)}{misses}."


def other_depths(scheme: str, other: str) -> list[tuple[int, list[Line]]]:
    return [(depth, lines) for depth, lines in by_depth(scheme, other).items() if depth != MAIN]


def by_depth(scheme: str, other: str) -> dict[int, list[Line]]:
    lines = at_depths(scheme, other)
    depths = sorted({int(line["layers"]) for line in lines})
    return {depth: [line for line in lines if int(line["layers"]) == depth] for depth in depths}


def excluded() -> str:
    """The gains and losses of MoD that lie outside the intervals, by each fit."""
    text = []
    for line in chosen(MOD, DENSE):
        budget = float(line["budget"])
        parts = []
        for fit in FITS:
            found = optima(fit).get((budget, MOD))
            if found and found["difference_low"]:
                low, high = float(found["difference_low"]), float(found["difference_high"])
                gain = f"a gain of more than {-low:.3f} nats" if low < 0 else "any gain"
                loss = f"a loss of more than {high:.3f} nats" if high > 0 else "any loss"
                parts.append(f"{gain} and {loss} by {FIT_NAMES[fit]}")
        text.append(
            f"Each at its own best depth at {budget_name(budget)} FLOPs, the 95 % interval leaves out "
            f"{'; '.join(parts)}."
        )
    choices = {float(line["budget"]) for line in chosen(MOD, DENSE)}
    alone = [budget_name(of) for of in sorted({of for of, _ in optima()} - choices)]
    if alone:
        text.append(
            f"At {listed(alone)} FLOPs not both have an interior optimum at two depths, so nothing can "
            "be said of the best depth."
        )
    return "\n".join([*text, *unbracketed()])


def unbracketed() -> Iterator[str]:
    """A sentence on the best depths that are the smallest or the largest one tried."""
    names = []
    for (budget, scheme), line in optima().items():
        depths = depths_of(line)
        if len(depths) > 1 and line["layers"] in (depths[0], depths[-1]):
            end = "smallest" if line["layers"] == depths[0] else "largest"
            names.append(f"{scheme} at {budget_name(budget)} FLOPs ({line['layers']} layers, the {end})")
    if names:
        yield (
            f"The best depth is at an end of those with an optimum for {listed(names)}: beyond it, "
            "another depth may be better."
        )


def meaning() -> str:
    """The differences by depth, at the budgets that have several: the effect of fixing one."""
    sentences = []
    for budget in sorted({float(line["budget"]) for line in at_depths(MOD, DENSE)}):
        lines = [line for line in at_depths(MOD, DENSE) if float(line["budget"]) == budget]
        if len(lines) < 2:
            continue
        each = [f"{float(line['difference']):+.3f} nats with {line['layers']} layers" for line in lines]
        low, high = int(lines[0]["layers"]), int(lines[-1]["layers"])
        moved = depth_effect(budget, low, high)
        sentences.append(
            f"At {budget_name(budget)} FLOPs, Mixture-of-Depths minus dense is {listed(each)}; from "
            f"{low} to {high} layers it changes by {in_cell(moved)} (p {moved.p:.2g}, one comparison)."
        )
    return "\n".join(sentences)


def best_table() -> str:
    """One row per budget and scheme at its best depth, where it has a choice."""
    heads = ("FLOPs", "scheme", "fit", "best depth (share of draws)", "loss (nats/token)")
    heads += ("minus dense", "adjusted p", "compared with dense")
    rows = []
    for budget, scheme in optima():
        for fit in FITS:
            line = optima(fit).get((budget, scheme))
            if line is None or len(depths_of(line)) < 2:
                continue
            share = f" ({100 * float(line['layers_share']):.0f} %)" if line["layers_share"] else ""
            mark = "" if line["same_processor_as_dense"] == "True" else " ‡"
            rows.append(
                (
                    budget_name(budget),
                    scheme,
                    fit,
                    f"{line['layers']}{share} of {', '.join(depths_of(line))}",
                    interval(line, "loss"),
                    interval(line, "difference") if line["difference"] else "-",
                    f"{float(line['difference_p_adjusted']):.2g}"
                    if line["difference_p_adjusted"]
                    else "-",
                    f"{line['difference_verdict']}{mark}" if line["difference"] else "-",
                )
            )
    return Table(heads, rows, left=(1, 2, 7)).to_markdown()


def curves_table() -> str:
    """One row per curve: its runs, its optimum by each fit, and the scatter around its parabola."""
    heads = (
        "FLOPs",
        "layers",
        "scheme",
        "sizes",
        "runs",
        *(f"loss by {FIT_NAMES[fit]}" for fit in FITS),
        "scatter",
    )
    curves: dict[tuple[float, int, str], dict[str, Line]] = {}
    for line in read("depths.csv"):
        at = float(line["budget"]), int(line["layers"]), line["scheme"]
        curves.setdefault(at, {})[line["fit"]] = line
    rows = []
    for (budget, depth, scheme), of in sorted(curves.items()):
        first = of[HEADLINE]
        losses = [
            f"{float(of[fit]['loss']):.4f}" if of[fit]["loss"] else of[fit]["verdict"] for fit in FITS
        ]
        scatter = f"{float(first['scatter']):.4f}" if first["scatter"] else "-"
        rows.append(
            (budget_name(budget), depth, scheme, first["sizes"], first["runs"], *losses, scatter)
        )
    return Table(heads, rows, left=(2,)).to_markdown()


def equal_table() -> str:
    """One row per depth, budget and pair of schemes, with the difference by each fit."""
    heads = ("layers", "FLOPs", "difference", *(f"by {FIT_NAMES[fit]}" for fit in FITS))
    rows = []
    for scheme, other in ((MOD, DENSE), (RANDOM, DENSE), (MOD, RANDOM)):
        for line in at_depths(scheme, other):
            mark = "" if line["same_processor"] == "True" else " ‡"
            budget, depth = float(line["budget"]), int(line["layers"])
            by_fit = [in_cell(fitted(scheme, other, budget, fit, depth)) for fit in FITS[1:]]
            verdict = line["verdict"] + mark
            p = f"{float(line['p_adjusted']):.2g}"
            rows.append(
                (
                    depth,
                    budget_name(budget),
                    f"{scheme} minus {other}",
                    interval(line, "difference"),
                    *by_fit,
                    p,
                    verdict,
                )
            )
    return Table((*heads, "adjusted p", "verdict"), rows, left=(2, 7)).to_markdown()


def next_text() -> str:
    """The costs of the suite for a GPU, by its plan."""
    plan = plan_suite(NEXT, time=False, tell=lambda text: None)
    gpu = Cluster(gpus=1)
    hours = 24 * gpu.days(plan.flops)
    budgets = [budget_name(budget) for budget in load_suite(NEXT).axes.budgets]
    return (
        f"It has {plan.runs} runs at {listed(budgets)} FLOPs, {plan.flops:.2g} training FLOPs in all: "
        f"{hours:.0f} hours of one H100 at {100 * gpu.utilisation:.0f} % of its peak. Models of this "
        f"size may reach less: `modbench plan {NEXT}` on the GPU measures it first, and `--price` turns "
        "hours into costs."
    )


def texts() -> dict[str, str]:
    return {
        "answer": answer(),
        "sense": sense(),
        "excluded": excluded(),
        "curves": curves_table(),
        "misfit": misfit(),
        "best": best_table(),
        "equal": equal_table(),
        "rates": rates_table(),
        "ratewords": rates_in_words(),
        "whatif": what_if_table(),
        "changes": what_if_in_words(),
        "processors": processors(),
        "again": same_runs(),
        "missing": missing(),
        "meaning": meaning(),
        "left": left(),
        "next": next_text(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the tables of docs/depth.md.")
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    only_check = parser.parse_args().check
    text = filled(PAGE.read_text(), texts())
    if only_check and text != PAGE.read_text():
        print(f"{PAGE.name} differs; run python tools/depth_page.py", file=sys.stderr)
        return 1
    if not only_check:
        PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
