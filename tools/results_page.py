"""Writes the tables of ``docs/results.md`` from the committed CSV files, and the planned cost of the
suites that were not run: ``python tools/results_page.py``; ``--check`` compares only.
"""

import argparse
import csv
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from suite_keys import filled

from modbench.plan.units import shown
from modbench.report.table import Table
from modbench.sweep.plan import plan_suite

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
OPTIMA = ROOT / "results" / "isoflop-cpu" / "optima.csv"
DIFFERENCES = ROOT / "results" / "isoflop-cpu" / "differences.csv"
SUITE = ROOT / "suites" / "isoflop-cpu.toml"
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
PLANNED = ("isoflop-gpu", "mod-paper")


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
            _budget(float(line["budget"])),
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
        found[line["budget"], line["scheme"], line["minus"]] = line
        found[line["budget"], line["minus"], line["scheme"]] = _reversed(line)
    budgets = sorted({float(budget) for budget, _, _ in found if budget})
    heads = ("difference (nats/token)", *(f"optima at {_budget(one)} FLOPs" for one in budgets))
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


def _reversed(line: dict[str, str]) -> dict[str, str]:
    """The difference the other way round."""
    low, middle, high = (f"difference{end}" for end in ("_high", "", "_low"))
    return {
        **line,
        "difference": str(-float(line[middle])),
        "difference_low": str(-float(line[low])),
        "difference_high": str(-float(line[high])),
        "lower_in": str(int(line["cells"]) - int(line["lower_in"])) if line["runs"] else "",
    }


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
            sentences.append(f"at {_budget(budget)} FLOPs {named}")
    return f"No optimum yet: {'; '.join(sentences)}." if sentences else "All curves have an optimum."


def _budget(flops: float) -> str:
    return f"{flops:.0e}".replace("e+", "e")


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
        yield name, f"{plan.runs}", f"{plan.flops:.3g}", f"{width} x {layers}", shown(tokens)


def texts() -> dict[str, str]:
    return {
        "isoflop": isoflop_table(),
        "left": left(),
        "pairs": pairs_table(),
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
