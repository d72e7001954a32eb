"""FLOP counters on cases of known cost: writes docs/counters.csv and docs/counters.md.

    python tools/compare_counters.py            # from the repository root
    python tools/compare_counters.py --check    # exit 1 where the committed figures differ

A counter that isn't installed is left out. To have all of them, next to modbench's extras dev and hf:

    DS_BUILD_OPS=0 pip install deepspeed calflops accelerate ptflops thop torchinfo

Each counter runs in a process of its own, and each case in a fork of that: some patch torch and do
not restore it.
"""

import argparse
import csv
import difflib
import importlib
import importlib.util
import io
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "counting"))

import torch  # noqa: E402
from counter_case import Case  # noqa: E402
from counter_cases import CASES  # noqa: E402
from other_counters import TOOLS, Tool  # noqa: E402

DOCS = ROOT / "docs"
CSV, PAGE = DOCS / "counters.csv", DOCS / "counters.md"
INSTALL = "DS_BUILD_OPS=0 pip install deepspeed calflops accelerate ptflops thop torchinfo"
COMMAND = "python tools/compare_counters.py"
LIMIT_S = 120
QUIET = {
    "DS_BUILD_OPS": "0",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}

#: By (group, case), what a counter answered: "exact", a ratio to the truth, "can't" or "error CLASS".
Answers = dict[tuple[str, str], str]


def answer(tool: Tool, case: Case) -> str:
    """Return the answer of ``tool`` to ``case``: exact, a ratio, can't or an error."""
    work = case.work()
    if tool.forward_only and work.module is None:
        return "can't"
    try:
        said = tool.count(work)
    except Exception as error:
        return f"error {type(error).__name__}"
    if said in (case.truth, case.truth + case.again):
        return "exact"
    return f"{said / case.truth:#.3g}"


def in_a_fork(work: Callable[[], str]) -> str:
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)

    def run(pipe: Connection) -> None:
        pipe.send(work())

    process = fork.Process(target=run, args=(there,))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(LIMIT_S) else "error timeout"
    except EOFError:
        return "error crash"
    finally:
        process.kill()
        process.join()


def serve(tool: Tool) -> None:
    """Print the answers of one counter as JSON, and nothing that it prints itself; a message if it can't
    be imported."""
    out = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        importlib.import_module(tool.package)
    except ImportError as error:
        os.write(out, json.dumps(str(error)).encode())
        return
    for case in runnable():
        case.work()  # what it imports is imported once, before the forks
    os.dup2(nowhere, 2)
    answers = [in_a_fork(partial(answer, tool, case)) for case in runnable()]
    os.write(out, json.dumps(answers).encode())


def runnable() -> list[Case]:
    return [case for case in CASES if importlib.util.find_spec(case.wants)]


def ask(tool: Tool) -> Answers | None:
    """All answers of ``tool``; None if it is not installed."""
    try:
        version(tool.package)
    except PackageNotFoundError:
        print(f"{tool.name}: not installed, left out", file=sys.stderr)
        return None
    print(f"{tool.name} ...", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, __file__, "--tool", tool.name],
        env=os.environ | QUIET,
        stdout=subprocess.PIPE,
        check=True,
    )
    answers = json.loads(done.stdout)
    if isinstance(answers, str):
        print(f"{tool.name}: can't be imported ({answers}), left out", file=sys.stderr)
        return None
    keys = [(case.group, case.name) for case in runnable()]
    return dict(zip(keys, answers, strict=True))


def table(answers: dict[str, Answers]) -> str:
    """The whole table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "case", "truth", "run again", *answers])
    for case in runnable():
        said = [of_tool[case.group, case.name] for of_tool in answers.values()]
        writer.writerow([case.group, case.name, case.truth, case.again, *said])
    return text.getvalue()


def page(answers: dict[str, Answers]) -> str:
    """The page in Markdown, summary first."""
    tools = [tool for tool in TOOLS if tool.name in answers]
    clear = [case for case in runnable() if not case.opaque]
    lines = [
        "# FLOP counters on cases of known cost",
        "",
        "After reading this page you can say how far a FLOP counter is off on your kind of model.",
        "",
        f"{len(clear)} cases, each with its matmul FLOPs (2 per multiply-accumulate, attention by the "
        "full",
        "square) computed by hand from its shapes, on a CPU. *Exact*: equal to the integer, with or",
        "without recomputation (the forward pass of a checkpoint, the scores in the backward pass",
        "of fused attention). *Can't*: a forward-only counter and a training step. Anything else is",
        "an *error*, or *wrong* and given as its ratio to the truth; 1.00 is close, not equal.",
        "",
        "*Custom op* is one more case: a matmul inside an op without a formula. A counter should",
        "look inside, or refuse.",
        "",
        "| counter | version | exact | wrong | error | can't | wrong figures, lowest to highest | "
        "custom op | asked by |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | --- | --- |",
    ]
    for tool in tools:
        said = [answers[tool.name][case.group, case.name] for case in clear]
        ratios = sorted((text for text in said if text[0].isdigit()), key=float)
        errors = sum(text.startswith("error") for text in said)
        span = f"{ratios[0]} to {ratios[-1]}" if ratios else ""
        hidden = [answers[tool.name][case.group, case.name] for case in runnable() if case.opaque]
        cells = [
            tool.name,
            version(tool.package).partition("+")[0],
            str(said.count("exact")),
            str(len(ratios)),
            str(errors),
            str(said.count("can't")),
            span,
            ", ".join(hidden),
            tool.asked,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for group in dict.fromkeys(case.group for case in runnable()):
        lines += ["", f"## {group[0].upper()}{group[1:]}", ""]
        lines.append(f"| case | truth | {' | '.join(tool.name for tool in tools)} |")
        lines.append(f"| --- | ---: | {' | '.join('---:' for _ in tools)} |")
        for case in runnable():
            if case.group == group:
                said = [answers[tool.name][case.group, case.name] for tool in tools]
                lines.append(f"| {case.name} | {case.truth} | {' | '.join(said)} |")
    lines += [
        "",
        "## Made by",
        "",
        "The cases are in `tests/counting/counter_*cases.py`. To make this page and "
        "[counters.csv](counters.csv) again, in a clone:",
        "",
        "<!-- not run: installs packages that patch PyTorch; nox -s counters does so apart -->",
        "```sh",
        'pip install -e ".[dev,hf]"',
        INSTALL,
        COMMAND,
        "```",
        "",
        f"`{COMMAND} --check` recounts and compares.",
        "",
    ]
    return "\n".join(lines)


def differs(fresh: str) -> bool:
    """Return True if the committed table differs; print how. Counters and cases that can't be
    had here are passed over."""
    new = list(csv.DictReader(io.StringIO(fresh)))
    names = list(new[0])
    runs = {(row["group"], row["case"]) for row in new}
    wants_more = {(case.group, case.name) for case in CASES} - runs
    committed = csv.DictReader(io.StringIO(CSV.read_text()))
    old = [row for row in committed if (row["group"], row["case"]) not in wants_more]
    was, now = (
        ["\t".join(f"{name}={row.get(name)}" for name in names) for row in rows] for rows in (old, new)
    )
    diff = list(difflib.unified_diff(was, now, "committed", "counted", lineterm="", n=0))
    print("\n".join(diff) if diff else f"{len(new)} cases, {len(names) - 4} counters: no difference")
    return bool(diff)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a difference")
    parser.add_argument("--tool", choices=[tool.name for tool in TOOLS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        serve(next(tool for tool in TOOLS if tool.name == options.tool))
        return 0
    for case in CASES:
        if case not in runnable():
            print(f"{case.group}, {case.name}: wants {case.wants}, left out", file=sys.stderr)
    asked = {tool.name: ask(tool) for tool in TOOLS}
    answers = {name: said for name, said in asked.items() if said is not None}
    if options.check:
        return int(differs(table(answers)))
    DOCS.mkdir(exist_ok=True)
    CSV.write_text(table(answers))
    PAGE.write_text(page(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
