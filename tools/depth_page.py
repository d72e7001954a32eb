"""Writes the tables and sentences of ``docs/depth.md`` from the committed results of the suite
isoflop-depth: ``python tools/depth_page.py``; ``--check`` compares only.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from depth_runs import (
    DENSE,
    FOLDER,
    HEADLINE,
    MOD,
    RANDOM,
    missing,
    processors,
    rates_table,
    same_runs,
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
    verdict_in_words,
)
from suite_keys import filled

from modbench.plan.gpus import Cluster
from modbench.records.finished import finished
from modbench.records.store import read_suite
from modbench.report.table import Table
from modbench.sweep.plan import plan_suite
from modbench.sweep.rows import resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.wanted import expand, losses_of

PAGE = Path(__file__).parents[1] / "docs" / "depth.md"
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
    """Verdict and differences at each budget."""
    by_budget = {float(line["budget"]): line for line in lines}
    each = [f"{lower_or_higher(line)} at {budget_name(budget)}" for budget, line in by_budget.items()]
    if len(lines) == 1:
        (budget,) = by_budget
        verdict = f"at {budget_name(budget)} FLOPs {VERDICTS[lines[0]['verdict']]} {NAMES[other]}"
        return f"{verdict}: its loss is {lower_or_higher(lines[0])}"
    return f"{verdict_in_words(by_budget, NAMES[other], 'verdict')}: its loss is {listed(each)} FLOPs"


def interval(line: Line, name: str) -> str:
    return (
        f"{float(line[name]):.4f} [{float(line[f'{name}_low']):.4f}, {float(line[f'{name}_high']):.4f}]"
    )


def answer() -> str:
    """Sentences on MoD and dense at the best depth and at equal depth, and on MoD and its control."""
    sentences = [
        f"Each at its own best depth, Mixture-of-Depths is {verdicts(chosen(MOD, DENSE), DENSE)}."
    ]
    for depth, lines in by_depth(MOD, DENSE).items():
        sentences.append(f"Both with {depth} layers, it is {verdicts(lines, DENSE)}.")
    sentences.append(
        f"Against random routing, at its own best depth it is {verdicts(chosen(MOD, RANDOM), RANDOM)}."
    )
    return "\n".join(f"{number}. {text}" for number, text in enumerate(sentences, start=1))


def in_one_sentence(link: str) -> str:
    """The answer for README and the main page of results: MoD and dense each at its own best depth, and
    at the deepest shapes that both have. ``link``: to this page."""
    depth, lines = [*by_depth(MOD, DENSE).items()][-1]
    return (
        "With the number of layers varied, each scheme at its own best depth, Mixture-of-Depths is "
        f"{verdicts(chosen(MOD, DENSE), DENSE)}; with {depth} layers for both it is "
        f"{verdicts(lines, DENSE)} ([what a fixed depth means]({link}))."
    )


def by_depth(scheme: str, other: str) -> dict[int, list[Line]]:
    lines = at_depths(scheme, other)
    depths = sorted({int(line["layers"]) for line in lines})
    return {depth: [line for line in lines if int(line["layers"]) == depth] for depth in depths}


def excluded() -> str:
    """The gains and losses of MoD that lie outside the intervals."""
    parts = []
    for line in chosen(MOD, DENSE):
        low, high = float(line["difference_low"]), float(line["difference_high"])
        parts.append(
            f"at {budget_name(float(line['budget']))} FLOPs a gain of more than {max(0.0, -low):.3f} "
            f"and a loss of more than {max(0.0, high):.3f} nats"
        )
    choices = {float(line["budget"]) for line in chosen(MOD, DENSE)}
    alone = [budget_name(of) for of in sorted({of for of, _ in optima()} - choices)]
    text = f"At each scheme's own best depth, the 95 % interval leaves out {listed(parts)}."
    if alone:
        text += (
            f" At {listed(alone)} FLOPs not both have curves of a second depth, so nothing can be said "
            "of the best depth."
        )
    return text


def meaning() -> str:
    """The differences by depth, at the budgets that have several: the effect of fixing one."""
    sentences = []
    for line in chosen(MOD, DENSE):
        budget = float(line["budget"])
        losses = {scheme: _losses(scheme, budget) for scheme in (DENSE, MOD)}
        for scheme, of in losses.items():
            each = [f"{loss:.4f} with {depth}" for depth, loss in of.items()]
            name = NAMES[scheme][0].upper() + NAMES[scheme][1:]
            sentences.append(
                f"{name} at {budget_name(budget)} FLOPs, at its best size: {listed(each)} layers."
            )
        at = {
            int(of["layers"]): float(of["difference"])
            for of in at_depths(MOD, DENSE)
            if float(of["budget"]) == budget
        }
        each = [f"{value:+.3f} nats with {depth} layers" for depth, value in at.items()]
        sentences.append(
            f"The difference, Mixture-of-Depths minus dense, is {listed(each)}, and "
            f"{float(line['difference']):+.3f} where each has its own best depth: the number of layers "
            f"alone moves it by {max(at.values()) - min(at.values()):.3f} nats."
        )
    return "\n".join(sentences)


def _losses(scheme: str, budget: float) -> dict[int, float]:
    """The loss at the optimum of each depth."""
    return {
        int(line["layers"]): float(line["loss"])
        for line in sorted(read("depths.csv"), key=lambda line: int(line["layers"]))
        if (line["scheme"], float(line["budget"]), line["fit"]) == (scheme, budget, HEADLINE)
        and line["loss"]
    }


def best_table() -> str:
    """One row per budget and scheme at its best depth."""
    heads = ("FLOPs", "scheme", "best depth, by parabola (share of draws)", "by Akima", "by surface")
    heads += ("loss (nats/token)", "minus dense", "adjusted p", "minus dense by Akima", "by surface")
    of_fit = {fit: optima(fit) for fit in ("akima", "surface")}
    rows = []
    for (budget, scheme), line in optima().items():
        share = f" ({100 * float(line['layers_share']):.0f} %)" if line["layers_share"] else ""
        others = [of_fit[fit].get((budget, scheme)) for fit in of_fit]
        rows.append(
            (
                budget_name(budget),
                scheme,
                f"{line['layers']}{share} of {', '.join(depths_of(line))}",
                *(of["layers"] if of else "-" for of in others),
                interval(line, "loss"),
                interval(line, "difference") if line["difference"] else "-",
                f"{float(line['difference_p_adjusted']):.3f}" if line["difference_p_adjusted"] else "-",
                *(
                    f"{float(of['difference']):+.4f}" if of and of["difference"] else "-"
                    for of in others
                ),
            )
        )
    return Table(heads, rows, left=(1,)).to_markdown()


def equal_table() -> str:
    """One row per depth, budget and pair of schemes."""
    heads = ("layers", "FLOPs", "difference", "nats/token", "adjusted p", "verdict")
    rows = []
    for scheme, other in ((MOD, DENSE), (RANDOM, DENSE), (MOD, RANDOM)):
        for line in at_depths(scheme, other):
            mark = "" if line["same_processor"] == "True" else " ‡"
            rows.append(
                (
                    line["layers"],
                    budget_name(float(line["budget"])),
                    f"{scheme} minus {other}",
                    interval(line, "difference"),
                    f"{float(line['p_adjusted']):.3f}",
                    line["verdict"] + mark,
                )
            )
    return Table(heads, rows, left=(2, 5)).to_markdown()


def left() -> str:
    """The runs that complete the suite, at the speed of those that are there."""
    runs, done = read_suite(FOLDER).runs, losses_of(finished(FOLDER))
    wanted = expand(resolve(load_suite(FOLDER.name)), done)
    rest = {run.run.key: run.budget for run in wanted if run.run.key not in done}
    seconds = sum((run.seconds or {}).get("train", 0.0) for run in runs)
    flops = sum(end["flops"] for run in runs for end in run.ends)
    hours = sum(rest.values()) * seconds / flops / 3600
    return (
        f"{len(rest)} of its runs are left, and those that further learning rates may need: "
        f"{sum(rest.values()):.2g} training FLOPs, {hours:.0f} hours of one core at the mean speed of "
        "the committed runs."
    )


def next_text() -> str:
    """The costs of the suite for a GPU, by its plan."""
    plan = plan_suite(NEXT, time=False, tell=lambda text: None)
    gpu = Cluster(gpus=1)
    hours = 24 * gpu.days(plan.flops)
    return (
        f"It has {plan.runs} runs of {plan.flops:.2g} training FLOPs in all: {hours:.0f} hours of one "
        f"H100 at {100 * gpu.utilisation:.0f} % of its peak. Models of this size may reach less than "
        f"that: `modbench plan {NEXT}` on the GPU measures it first, and `--price` turns hours into "
        "costs."
    )


def texts() -> dict[str, str]:
    return {
        "answer": answer(),
        "excluded": excluded(),
        "best": best_table(),
        "equal": equal_table(),
        "rates": rates_table(),
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
