"""The tables that come from committed results, and the check of what sentences claim.

A person's words stand between ``<!-- claim mod vanilla 3e12,1e13 undecided -->`` and ``<!-- end -->``:
the schemes that are compared, with what, the budgets and the verdict, which is one of the frame of pairs
or "not tested". Several schemes or budgets are joined by commas; a suite other than isoflop-cpu stands
before them, with a slash at its end. A claim holds a whole sentence."""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import dropwhile, product, takewhile
from pathlib import Path
from statistics import fmean

import modbench
from modbench.analysis.idle_layers import LEAST_ADDED
from modbench.plan.units import shown as in_units
from modbench.records.run_name import budget_text
from modbench.records.store import read_suite
from modbench.report.table import Table
from modbench.sweep.detect import detection, seeds_needed
from modbench.sweep.plan import plan_suite
from modbench.sweep.request import SuiteRequest
from pages import keys

RESULTS, DENSE = keys.ROOT / "results", "vanilla"
#: The suites of README's table, by budget, and their rows that choose tokens by a rule.
HEADLINES = ("headline-1e13", "headline-3e13")
CONTROLS = ("mod:hash", "mod:gaussian")
USED_SHARE = 0.75  #: of the seeds, in which each routed layer of a control must be used
#: Suites that wait for a GPU.
PLANNED = ("isoflop-gpu", "isoflop-depth-gpu", "mod-paper-6e18", "mod-paper")
ROUTING_GAIN = 0.05  #: nats over random selection, from which shares of the gain are shown

Line = Mapping[str, str]


def read(name: str) -> list[Line]:
    """The lines of a CSV file of the results folder."""
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def at(flops: str) -> str:
    return budget_text(int(float(flops)))


def optima(suite: str) -> list[Line]:
    """The optima of parabolas, each at its best depth, in the order of the page."""
    lines = read(f"{suite}/optima.csv")
    return [line for line in lines if line["fit"] == "parabola" and line["best"] == "True"]


def minus_dense(suite: str) -> dict[tuple[str, str], Line]:
    """The tested differences to the dense model by budget and scheme."""
    lines = read(f"{suite}/differences.csv")
    return {(line["budget"], line["scheme"]): line for line in lines if line["family"] == "dense"}


def difference(line: Line) -> str:
    """A difference with its 95 % interval."""
    value, low, high = (line[name] and f"{float(line[name]):+.3f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if value else "-"


def speed_up(line: Line) -> str:
    """FLOPs that the dense model needs for the loss of a scheme, over the budget."""
    if not line["speed_up"]:
        return "-"
    return f"{line['speed_up_bound']} {float(line['speed_up']):.2f}".strip()


def word(line: Line) -> str:
    """The verdict on a row; *unused*: a control whose routed layers do next to nothing."""
    for control in {line["scheme"], line["other"]} & {*CONTROLS}:
        (suite,) = (suite for suite in HEADLINES if at(line["budget"]) in suite)
        runs = modbench.results(RESULTS / suite)
        added = runs[runs["label"] == control].filter(like="added_layer_").dropna(axis=1)
        if ((added >= LEAST_ADDED).mean() < USED_SHARE).any():
            return "unused"
    return line.get("verdict") or line.get("no_verdict_because", "")


def headline() -> str:
    """One row per scheme at its own best shape: its loss minus the dense model's at each budget."""
    lines = {(line["scheme"], suite): line for suite in HEADLINES for line in primary(suite)}
    last = {line["label"]: line for line in read(f"{HEADLINES[-1]}/leaderboard.csv")}
    schemes = sorted(
        {scheme for scheme, _ in lines}, key=lambda of: float(lines[of, HEADLINES[-1]]["value"])
    )
    rows = []
    for scheme in (DENSE, *schemes):
        told = ["-" for _ in HEADLINES]
        if scheme != DENSE:
            of = [lines[scheme, suite] for suite in HEADLINES]
            told = [f"{difference(line)} {word(line)}" for line in of]
        shape = last[scheme]
        rows.append((scheme, shape["layers"], f"{float(shape['active_parameters']) / 1e3:.0f} k", *told))
    heads = [f"minus dense, {suite.rpartition('-')[2]} FLOPs" for suite in HEADLINES]
    return Table(("scheme", "layers", "active parameters", *heads), rows).to_markdown()


def primary(suite: str, role: str = "primary") -> list[Line]:
    """The comparisons of ``role`` that ``suite`` was written to decide."""
    return [line for line in read(f"{suite}/differences.csv") if line["family"] == role]


def choosing() -> str:
    """The secondary comparisons of the suites of `headline`: by context, by token ids, at random."""
    rows = [
        {
            "FLOPs": at(line["budget"]),
            "difference": f"{line['scheme']} minus {line['other']}",
            "nats/token": difference(line),
            "margin": line["margin"] or "-",
            "word": word(line),
            "blocks": line["pairs"],
        }
        for suite in HEADLINES
        for line in primary(suite, "secondary")
    ]
    return Table.of(rows, left=(1, 4)).to_markdown()


def curves() -> str:
    """Of each scheme and budget: loss minus dense at the optima, its word, and the speed-up."""
    pairs = minus_dense("isoflop-cpu")
    rows = defaultdict[str, dict[str, str]](dict)
    for line in optima("isoflop-cpu"):
        budget, scheme = line["budget"], line["scheme"]
        if scheme != DENSE:
            of = pairs[budget, scheme]
            minus = f"{difference(of)} {of['verdict']}"
            told = {f"minus dense, {at(budget)}": minus, f"speed-up, {at(budget)}": speed_up(line)}
            rows[scheme] |= told
    return Table.of([{"scheme": scheme} | of for scheme, of in rows.items()]).to_markdown()


def pilot() -> str:
    """Mean losses of headline-pilot by scheme, depth and rate; the lowest of a scheme is chosen."""
    runs = modbench.results(RESULTS / "headline-pilot")
    runs["row"] = runs["label"].str.split().str[0]
    means = runs.groupby(["row", "layers", "width", "learning_rate"])["heldout_loss"].mean()
    best = {means[row].min() for row in means.index.unique("row")}
    rows = []
    for (row, layers, width), of in means.groupby(level=[0, 1, 2], sort=True):
        rates = (
            f"{rate:g}: {loss:.4f}{' (chosen)' if loss in best else ''}"
            for (*_, rate), loss in of.items()
        )
        rows.append((row, layers, width, ", ".join(rates)))
    return Table(("scheme", "layers", "width", "learning rate: loss"), rows, left=(0, 3)).to_markdown()


def optimizers() -> str:
    """MoD minus dense under each optimizer, with and without query-key norm, each row at its best rate;
    then what the differences differ by, whose interval is sqrt(2) times as wide: it has more runs."""
    runs, pairs = modbench.results(RESULTS / "muon"), modbench.pairs(RESULTS / "muon")
    means = runs.groupby("label")["heldout_loss"].mean()
    rate = runs.groupby("label")["learning_rate"].first()
    rows, told = [], dict[tuple[str, str], tuple[float, float]]()
    for optimizer, norm in product(("adamw", "muon"), ("", " qk")):
        names = [f"{router} {optimizer}{norm}" for router in ("dense", "mod")]
        rates = ("low", "middle", "high", "top")
        tried = [[f"{name} {one}" for one in rates if f"{name} {one}" in means] for name in names]
        dense, mod = (min(labels, key=means.__getitem__) for labels in tried)
        sides = pairs["scheme"].isin([dense, mod]) & pairs["other"].isin([dense, mod])
        (pair,) = pairs[sides].to_dict("records")
        half = (pair["high"] - pair["low"]) / 2
        value = told[optimizer, norm] = means[mod] - means[dense], half
        losses = (f"{means[label]:.3f} ({rate[label]:.2g})" for label in (dense, mod))
        words = f"{optimizer}, query-key norm" if norm else optimizer
        rows.append((words, *losses, _with_interval(*value)))
    for norm, words in (("", "muon minus adamw"), (" qk", "muon minus adamw, query-key norm")):
        (ours, half), (theirs, _) = told["muon", norm], told["adamw", norm]
        rows.append((words, "-", "-", _with_interval(ours - theirs, 2**0.5 * half)))
    heads = ("optimizer", "dense, its loss (rate)", "mod, its loss (rate)", "mod minus dense")
    return Table(heads, rows).to_markdown()


def routing() -> str:
    """Areas of the predictors, and the share of the gain over random selection that a rule keeps: means
    over seeds and layers at the end of training."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for line in read("routing-over-training/routing.csv"):
        at_tenth = line["metric"] == "saturation"
        if line["share"] == ("0.1" if at_tenth else "1.0"):
            values[line["row"], line["kind"], line["metric"]].append(float(line["value"]))
    rules = ("position", "dense_loss", "dense_change", "id", "ids")
    areas = [f"auc_{rule}" for rule in rules]
    rows = []
    for row, kind in sorted({(row, kind) for row, kind, metric in values if metric == areas[0]}):
        mean = {metric: fmean(of) for (*ours, metric), of in values.items() if ours == [row, kind]}
        kept = ["-", "-"]
        if "loss_own" in mean and mean["loss_random"] - mean["loss_own"] > ROUTING_GAIN:
            gain = mean["loss_random"] - mean["loss_own"]
            kept = [f"{(mean['loss_random'] - mean[f'loss_{of}']) / gain:.0%}" for of in rules[3:]]
        rows.append((row, kind, *(f"{mean[of]:.2f}" for of in ("saturation", *areas)), *kept))
    heads = ("scheme", "decisions", "taken at a tenth", *(rule.replace("_", " ") for rule in rules))
    return Table((*heads, "gain kept by id", "by ids"), rows).to_markdown()


def _with_interval(value: float, half: float) -> str:
    return f"{value:+.3f} ({value - half:+.3f} to {value + half:+.3f})"


def planned() -> str:
    """Runs, FLOPs, largest model and tokens of the suites that were not run."""
    rows = []
    for name in PLANNED:
        plan = plan_suite(SuiteRequest(name=name, results=RESULTS), lambda text: None)
        width, layers = max(size for part in plan.parts for size in part.sizes)
        tokens = in_units(max(part.tokens for part in plan.parts))
        rows.append((name, plan.runs, f"{plan.flops:.3g}", f"{width} x {layers}", tokens))
    heads = ("suite", "runs", "training FLOPs", "largest model (width x layers)", "most tokens of a run")
    return Table(heads, rows).to_markdown()


def first_table(suite: str) -> str:
    """The first table of a suite's page."""
    page = (RESULTS / suite / "leaderboard.md").read_text().splitlines()
    rest = dropwhile(lambda line: not line.startswith("|"), page)
    return "\n".join(takewhile(lambda line: line.startswith("|"), rest))


def seeds() -> str:
    """The seeds that a row needs, by difference: with a stated noise and with that of quick."""
    folder = RESULTS / "quick"
    recorded = detection(1, None, folder, ()).noise
    heads = ("difference (nats/token)", "noise 0.0204", f"noise {recorded:.4f}, that of quick")
    rows = [
        (nats, *(seeds_needed(nats, of) for of in (0.0204, recorded)))
        for nats in (0.07, 0.05, 0.03, 0.02)
    ]
    return Table(heads, rows).to_markdown()


def costs() -> str:
    """Disk and memory of the first commands (`tools/costs.json`); minutes by the committed records."""
    measured = json.loads((keys.ROOT / "tools" / "costs.json").read_text())
    records = read_suite(RESULTS / "quick")
    spent = [record.seconds or {} for record in (*records.runs, *records.measurements)]
    install = measured["install_seconds"] / 60
    minutes = sum(sum(of_step.values()) for of_step in spent) / 2 / 60
    gigabytes = {name: of / 1e9 for name, of in measured.items() if name.endswith("bytes")}
    rows = [
        (
            "bench",
            f"{gigabytes['environment_bytes']:.1f} GB in .nox/",
            f"{gigabytes['memory_bytes']:.0f} GB",
            f"{install + minutes:.0f} minutes, {install:.0f} of them to install",
        ),
        (
            "tests",
            f"{gigabytes['developers_environment_bytes']:.1f} GB, its own",
            "up to 2 GB for each of up to 4 processes",
            f"{measured['tests_seconds'] / 60:.0f} minutes",
        ),
    ]
    return Table(
        ("", "disk, PyTorch included", "memory", "two idle cores"), rows, left=range(4)
    ).to_markdown()


#: What writes the text between the markers of each name.
TEXTS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "choosing": choosing,
    "costs": costs,
    "curves": curves,
    "confirm": partial(first_table, "confirm"),
    "planned": planned,
    "pilot": pilot,
    "optimizers": optimizers,
    "routing": routing,
    "seeds": seeds,
}


#: Names of blocks, with those that other files of this folder fill.
BLOCKS = {*TEXTS, *keys.TEXTS, "audits", "errors"}
_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
#: Claims with their sentence.
_CLAIMED = re.compile(r"<!--\s*claim\b[^>]*-->(.*?)<!-- end -->", re.DOTALL)
_CLAIM = re.compile(
    r"claim (?:(\S+)/ )?(\S+) (\S+) (\S+) (better|worse|undecided|equivalent|not tested)"
)
#: Comments of pages that are neither claims nor blocks of this file: `modbench.cli.docs` and tests.
_OTHERS = re.compile(r"end|not run: .*|table", re.DOTALL)


def wrong_claims(page: str, results: Path = RESULTS) -> list[str]:
    """A sentence for each claim of ``page`` with another verdict than the committed results have, and
    for each comment that is neither a claim nor the name of a block."""
    wrong = [
        f"a claim holds a whole sentence, not '{words}'"
        for words in _CLAIMED.findall(page)
        if not re.fullmatch(r"[A-Z].*\.", words, re.DOTALL)
    ]
    for comment in _COMMENT.findall(page):
        words = " ".join(comment.split())
        if words in BLOCKS or _OTHERS.fullmatch(words):
            continue
        if not (claim := _CLAIM.fullmatch(words)):
            form = "claim [SUITE/] SCHEMES OTHER BUDGETS VERDICT"
            wrong.append(f"'{words}' is neither a claim ({form}) nor the name of a block")
            continue
        suite, schemes, other, budgets, stated = claim.groups()
        pairs = modbench.pairs(results / (suite or "isoflop-cpu"))
        at_optima = pairs[(pairs["other"] == other) & pairs["depth"].isna()]
        for scheme, budget in product(schemes.split(","), budgets.split(",")):
            of = at_optima[(at_optima["scheme"] == scheme) & (at_optima["budget"] == float(budget))]
            found = {*of["verdict"].dropna()} or {"not tested" if len(of) else "no such pair"}
            if found != {stated}:
                what = f"{scheme} against {other} at {budget} FLOPs is claimed to be {stated}"
                wrong.append(f"{what}; the results say: {', '.join(sorted(found))}")
    return wrong
