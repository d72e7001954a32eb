"""Writes the tables and sentences of ``docs/results.md`` from the committed CSV files, and the planned
cost of the suites that were not run: ``python tools/results_page.py``; ``--check`` compares only.
"""

import argparse
import csv
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import depth_page
from results_prose import (
    against_dense,
    budget_name,
    by_budget,
    experts_in_words,
    in_seconds,
    listed,
    pair_in_words,
    turned,
)
from suite_keys import filled

from modbench.analysis.noise import Spread, pooled
from modbench.plan.units import shown as in_units
from modbench.report.table import Table
from modbench.sweep.plan import plan_suite

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
OPTIMA = ROOT / "results" / "isoflop-cpu" / "optima.csv"
DIFFERENCES = ROOT / "results" / "isoflop-cpu" / "differences.csv"
SUITE = ROOT / "suites" / "isoflop-cpu.toml"
LEADERBOARD = ROOT / "results" / "isoflop-cpu" / "leaderboard.csv"
QUICK_SCORES = ROOT / "results" / "quick-scores" / "leaderboard.csv"
#: Headings and columns of the table of downstream scores.
SCORES = (
    ("cloze (accuracy)", "modbench_cloze:acc"),
    ("continuation (accuracy)", "modbench_continuation:acc"),
    ("mixture (accuracy)", "modbench_mixture:acc"),
    ("documents (bits/byte)", "modbench_bits_per_byte:bits_per_byte"),
)
#: Differences of the second table of the sweep: scheme and the one it is compared with.
PAIRS = (
    ("mod", "mod:gaussian"),
    ("expert_choice", "token_choice"),
    ("mode_staged", "token_choice"),
    ("mode_integrated", "token_choice"),
)
PLANNED = ("isoflop-gpu", "isoflop-depth-gpu", "mod-paper-6e18", "mod-paper")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def optima() -> list[dict[str, str]]:
    """The lines of the parabola that have an optimum, in the order of the leaderboard."""
    return [line for line in read(OPTIMA) if line["fit"] == "parabola" and line["loss"]]


def interval(line: dict[str, str], name: str, digits: int) -> str:
    """A figure with its 95 % interval, where it has one; an unknown end is a question mark."""
    if not line[name]:
        return "-"
    text = f"{float(line[name]):.{digits}f}"
    ends = [line[f"{name}_low"], line[f"{name}_high"]]
    low, high = (f"{float(end):.{digits}f}" if end else "?" for end in ends)
    return f"{text} [{low}, {high}]" if any(ends) else text


def isoflop_table() -> str:
    """One row per budget and scheme."""
    heads = ("FLOPs", "group", "scheme", "loss at the optimum (nats/token)", "bits/byte", "minus dense")
    heads += ("compared with dense", "speed-up at equal loss", "active parameters")
    rows = [
        (
            budget_name(float(line["budget"])),
            line["group"] if line["position"] else "not ranked",
            line["scheme"],
            interval(line, "loss", 4),
            f"{float(line['bits_per_byte']):.4f}",
            interval(line, "difference", 4),
            line["difference_verdict"] or "-",
            _speed_up(line),
            f"{float(line['active_parameters']) / 1e3:,.0f} k",
        )
        for line in optima()
    ]
    return Table(heads, rows, left=(1, 2, 6)).to_markdown()


def pairs_table() -> str:
    """One row per pair of schemes: differences at the optima, and the mean of runs of equal shape."""
    found = {}
    for line in read(DIFFERENCES):
        if line["family"] == "dense":
            continue
        found[line["budget"], line["scheme"], line["minus"]] = line
        found[line["budget"], line["minus"], line["scheme"]] = turned(line)
    budgets = sorted({float(budget) for budget, _, _ in found if budget})
    heads = ("difference (nats/token)", *(f"optima at {budget_name(one)} FLOPs" for one in budgets))
    rows = []
    for scheme, other in PAIRS:
        cells = [found.get((f"{budget:.0f}", scheme, other)) for budget in budgets]
        equal = found.get(("", scheme, other))
        runs = f", lower in {equal['lower_in']} of {equal['cells']} cells" if equal else ""
        rows.append(
            (
                f"{scheme} minus {other}",
                *(interval(cell, "difference", 4) if cell else "-" for cell in cells),
                f"{interval(equal, 'difference', 4)}{runs}" if equal else "-",
            )
        )
    return Table((*heads, "runs of equal shape"), rows).to_markdown()


def scores_table() -> str:
    """One row per scheme: accuracies and bits per byte, means over seeds with half of their interval."""
    heads = ("scheme", "held-out loss (nats/token)", *(head for head, _ in SCORES))
    names = ("heldout_loss", *(name for _, name in SCORES))
    rows = [
        (line["label"], *(f"{float(line[n]):.3f} ± {_half(line, n):.3f}" for n in names))
        for line in read(QUICK_SCORES)
    ]
    chance = ("chance", "-", *(f"{float(read(QUICK_SCORES)[0][f'{n}_chance']):.3f}" for _, n in SCORES))
    return Table(heads, [*rows, chance]).to_markdown()


def _half(line: dict[str, str], name: str) -> float:
    return float(line[f"{name}_high"]) - float(line[name])


def left() -> str:
    """Name the schemes that have no optimum yet, by budget."""
    suite = tomllib.loads(SUITE.read_text())
    schemes = [scheme["router"] for scheme in suite["schemes"]]
    found = {(float(line["budget"]), line["scheme"]) for line in optima()}
    sentences = []
    for budget in suite["sweep"]["budgets"]:
        missing = [scheme for scheme in schemes if (budget, scheme) not in found]
        if missing:
            named = "all schemes" if missing == schemes else ", ".join(f"`{one}`" for one in missing)
            sentences.append(f"at {budget_name(budget)} FLOPs {named}")
    return f"No optimum yet: {'; '.join(sentences)}." if sentences else "All curves have an optimum."


def _speed_up(line: dict[str, str]) -> str:
    bound = f"{line['speed_up_bound']} " if line["speed_up_bound"] else ""
    return f"{bound}{interval(line, 'speed_up', 2)}"


def planned_table() -> str:
    """Runs, FLOPs, largest model and tokens of the suites that were not run."""
    heads = ("suite", "runs", "training FLOPs", "largest model (width x layers)")
    return Table((*heads, "most tokens of a run"), [*planned()]).to_markdown()


def planned() -> Iterator[tuple[str, ...]]:
    for name in PLANNED:
        plan = plan_suite(name, time=False, tell=lambda text: None)
        width, layers = max(size for part in plan.parts for size in part.sizes)
        tokens = max(part.tokens for part in plan.parts)
        yield name, f"{plan.runs}", f"{plan.flops:.3g}", f"{width} x {layers}", in_units(tokens)


def answer(depth: str = "depth.md") -> str:
    """A sentence each: experts, Mixture-of-Depths, its control, both together, time; two on depth, with
    the link ``depth`` to the page on it."""
    lines, differences = optima(), read(DIFFERENCES)
    return "\n".join(
        f"{number}. {sentence}"
        for number, sentence in enumerate(
            (
                experts_in_words(lines, ("token_choice", "expert_choice")),
                against_dense(lines, "mod"),
                pair_in_words(differences, "mod", "mod:gaussian"),
                experts_in_words(lines, ("mode_staged", "mode_integrated")),
                in_seconds(lines, [line["scheme"] for line in lines]),
                *depth_page.in_two_sentences(depth),
            ),
            start=1,
        )
    )


def method() -> str:
    """Sizes, budgets, seeds, comparisons and noise of the sweep."""
    suite = tomllib.loads(SUITE.read_text())
    budgets, seeds = suite["sweep"]["budgets"], suite["sweep"]["seeds"]
    middle = budget_name(sorted(budgets)[len(budgets) // 2])
    runs = sum(int(line["seeds"]) for line in read(LEADERBOARD) if line["status"].startswith("ok"))
    compared = sum(bool(line["difference_p_adjusted"]) for line in optima())
    scatters = []
    for budget in sorted(budgets):
        of_budget = [line for line in optima() if float(line["budget"]) == budget]
        around = [Spread(float(of["scatter"]), int(of["scatter_freedom"])) for of in of_budget]
        scatters.append(f"{pooled(around).sd:.4f} at {budget_name(budget)}")
    sizes, tokens = suite["isoflop"]["sizes"], suite["measure"]["heldout_tokens"]
    sentences = (
        f"{sizes} sizes per scheme and budget, {len(seeds)} seeds at {middle} FLOPs and one at the",
        f"other budgets; {runs} runs in all, those that try learning rates included. The loss is of",
        f"{tokens:,} held-out tokens. Verdicts are adjusted for {compared} comparisons with the dense",
        f"model (Holm's method). The noise of one run, measured between seeds at {middle} FLOPs, is",
        f"{float(optima()[0]['noise']):.4f} nats. As a check on it, the scatter of one run around the",
        f"parabolas, all schemes together, is {listed(scatters)}.",
    )
    return "\n".join(sentences)


def mod() -> str:
    """Mixture-of-Depths against the dense model, by all fits, and the cost of its tokens."""
    lines, dense = by_budget(optima(), "mod"), by_budget(optima(), "vanilla")
    adjusted, cost = [], []
    for budget, line in lines.items():
        name = budget_name(budget)
        adjusted.append(f"{float(line['difference_p_adjusted']):.2f} at {name}")
        flops = [float(of[budget]["forward_flops_per_token"]) for of in (lines, dense)]
        cost.append(f"{flops[0] / flops[1]:.2f} at {name}")
    others = []
    for fit in ("akima", "surface"):
        of_fit = by_budget([line for line in read(OPTIMA) if line["fit"] == fit], "mod")
        shown = [f"{float(line['difference']):+.3f}" for line in of_fit.values()]
        others.append(f"{listed(shown)} ({fit})")
    sentences = (
        against_dense(optima(), "mod"),
        f"Adjusted p: {listed(adjusted)}.",
        f"The other two fits of the optima give the differences {'; '.join(others)}, the smallest",
        "budget first. At its optimum, a token of MoD takes this part of the dense optimum's forward",
        f"FLOPs: {listed(cost)}.",
    )
    return "\n".join(sentences)


def mode() -> str:
    """MoD with experts, against the dense model and against experts alone."""
    lines, differences = optima(), read(DIFFERENCES)
    pairs = [
        pair_in_words(differences, name, "token_choice") for name in ("mode_staged", "mode_integrated")
    ]
    dense = [against_dense(lines, name) for name in ("mode_staged", "mode_integrated")]
    return "\n\n".join([*dense, " ".join(pairs)])


def texts() -> dict[str, str]:
    lines, differences = optima(), read(DIFFERENCES)
    experts = [against_dense(lines, name) for name in ("token_choice", "expert_choice")]
    return {
        "answer": answer(),
        "isoflop": isoflop_table(),
        "left": left(),
        "method": method(),
        "mod": mod(),
        "control": pair_in_words(differences, "mod", "mod:gaussian"),
        "pairs": pairs_table(),
        "experts": "\n\n".join([*experts, pair_in_words(differences, "expert_choice", "token_choice")]),
        "mode": mode(),
        "seconds": in_seconds(lines, [line["scheme"] for line in lines]),
        "scores": scores_table(),
    }


def main(words: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the tables of docs/results.md.")
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    only_check = parser.parse_args(words).check
    text = filled(PAGE.read_text(), {**texts(), "planned": planned_table()})
    if only_check and text != PAGE.read_text():
        print(f"{PAGE.name} differs; run python tools/results_page.py", file=sys.stderr)
        return 1
    if not only_check:
        PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
