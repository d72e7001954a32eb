"""Trains small models, converts the dense ones to MoD, scores all of them with lm-eval, and writes the
table of models that had equal training FLOPs into docs/retrofit.md. Takes about half an hour.

    python tools/conversion_table.py
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from modbench.report.table import Table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "retrofit.md"
PLACE = re.compile(r"(<!-- converted models -->\n).*?(<!-- end of converted models -->)", re.DOTALL)
HALF, WHOLE = 1e12, 2e12
SEEDS = (0, 1, 2)
#: Its base is in no row of the table.
SEED_OF_RATES = 3
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
ITEMS = 500  #: of each task; the first has fewer
TASKS = {"modbench_bits_per_byte": "bits_per_byte", "modbench_cloze": "acc"}
SUITE = f"""
[suite]
name = "conversion"
[model]
width = 128
layers = 4
heads = 4
[data]
tokenizer = "bpe"
vocabulary = 2048
[train]
sequence = 256
batch = 4
learning_rate = 5e-3
[measure]
steps = ["train"]
[sweep]
budgets = [{HALF}, {WHOLE}]
seeds = {[*SEEDS, SEED_OF_RATES]}
[[schemes]]
router = "vanilla"
[[schemes]]
router = "mod"
"""


def modbench(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "modbench", *words], check=True, stdout=sys.stderr)


def scores(model: str, results: Path, out: Path) -> list[float]:
    """The scores of ``model``, in the order of TASKS."""
    tasks = ",".join(TASKS)
    how = ["--limit", str(ITEMS), "--results", str(results), "--out", str(out), "--no-validity"]
    modbench("eval", model, "--tasks", tasks, *how)
    (file,) = out.rglob("results_*.json")
    found = json.loads(file.read_text())["results"]
    return [found[task][f"{metric},none"] for task, metric in TASKS.items()]


def exported(seed: int, results: Path, out: Path) -> str:
    run = f"conversion/vanilla@{HALF:.0e}#{seed}"
    modbench("export", run, "--to", "hf", "--out", str(out), "--results", str(results))
    return str(out)


def converted(base: str, seed: int, rate: float, out: Path) -> str:
    train = ["--data", "pypi-en-v1", "--budget", f"{HALF}", "--batch", "4", "--seed", f"{seed}"]
    modbench("convert", base, "--router", "mod", *train, "--learning-rate", f"{rate}", "--out", str(out))
    return str(out)


def best_rate(folder: Path, results: Path) -> float:
    """The learning rate of the conversion with the lowest bits per byte."""
    base = exported(SEED_OF_RATES, results, folder / "base")
    found = {}
    for rate in RATES:
        model = converted(base, SEED_OF_RATES, rate, folder / f"{rate}")
        found[rate] = scores(model, results, folder / f"scores {rate}")[0]
        print(f"learning rate {rate}: {found[rate]:.4f} bits per byte")
    return min(found, key=found.__getitem__)


def rows_of(folder: Path) -> tuple[float, dict[str, list[list[float]]]]:
    """The learning rate of conversions, and the scores of each row of the table by seed."""
    results = folder / "results"
    suite = folder / "conversion.toml"
    suite.write_text(SUITE)
    modbench("run", str(suite), "--results", str(results))
    rate = best_rate(folder, results)
    half, whole = f"{HALF:.0e}".replace("+", ""), f"{WHOLE:.0e}".replace("+", "")
    dense, ours = f"dense, {whole} FLOPs", f"MoD of modbench, {whole} FLOPs"
    after = f"dense with {half} FLOPs, converted to MoD with {half} more"
    base = f"dense, {half} FLOPs: the model that was converted"
    rows: dict[str, list[list[float]]] = {dense: [], ours: [], after: [], base: []}
    for seed in SEEDS:
        here = folder / f"seed {seed}"
        start = exported(seed, results, here / "base")
        model = converted(start, seed, rate, here / "converted")
        names = {
            dense: f"conversion/vanilla@{WHOLE:.0e}#{seed}",
            ours: f"conversion/mod@{WHOLE:.0e}#{seed}",
            after: model,
            base: start,
        }
        for number, (row, name) in enumerate(names.items()):
            rows[row].append(scores(name, results, here / f"scores {number}"))
    return rate, rows


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        rate, rows = rows_of(Path(name))
    lines = []
    for row, by_seed in rows.items():
        cells = []
        for number, scale, digits in ((0, 1, 4), (1, 100, 1)):
            values = [scale * found[number] for found in by_seed]
            cells.append(f"{statistics.mean(values):.{digits}f} ({statistics.stdev(values):.{digits}f})")
        lines.append((row, *cells))
    table = Table(("model", "bits per byte", "modbench_cloze, % right"), lines).to_markdown()
    words = f"Learning rate of the conversions, the best of {len(RATES)} for another seed: {rate}."
    page = PAGE.read_text(encoding="utf-8")
    assert PLACE.search(page)
    made = f"{table.strip()}\n\n{words}"
    PAGE.write_text(PLACE.sub(lambda at: f"{at[1]}\n{made}\n\n{at[2]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
