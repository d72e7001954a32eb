"""Trains small models of width 128 in one process and in several, on a CPU with gloo, and writes the
table of their losses into docs/large_runs.md. Takes some minutes.

    python tools/ranks_table.py
"""

import json
import re
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

from modbench.report.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "train"))
from rank_training import trained

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "train" / "rank_training.py"
PAGE = ROOT / "docs" / "large_runs.md"
PLACE = re.compile(r"(<!-- losses of several processes -->\n).*?(<!-- end of losses -->)", re.DOTALL)
#: Rows of the table: router, options, ways to train it.
ROWS: list[tuple[str, dict[str, Any], list[dict[str, int]]]] = [
    ("vanilla", {}, [{}, {"data": 2}, {"shard": 2}]),
    ("mod", {"capacity": 0.25}, [{}, {"data": 2}, {"shard": 2}, {"data": 2, "shard": 2}]),
    (
        "token_choice",
        {"experts": 4, "balance_scope": "sequence"},
        [{}, {"data": 2}, {"shard": 2}, {"expert": 2}, {"data": 2, "expert": 2}],
    ),
    # Its balance loss is of all tokens of a process.
    ("token_choice", {"experts": 4}, [{}, {"data": 2}, {"expert": 2}]),
    ("expert_choice", {"experts": 4}, [{}, {"expert": 2}]),
]


def losses(router: str, options: dict[str, Any], parallel: dict[str, int]) -> tuple[float, float]:
    """Training and held-out loss after the last step, in nats per token."""
    with tempfile.TemporaryDirectory() as name:
        if not parallel:
            found, _ = trained(router, Path(name), options=options)
            return found.curve[-1]["train_loss"], found.curve[-1]["heldout_loss"]
        wanted = {"router": router, "options": options, "parallel": parallel}
        (Path(name) / "wanted.json").write_text(json.dumps(wanted))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command += [str(prod(parallel.values())), str(SCRIPT), name]
        subprocess.run(command, check=True)
        last = json.loads((Path(name) / "found.json").read_text())["curve"][-1]
    return last["train_loss"], last["heldout_loss"]


def main() -> None:
    rows = []
    for router, options, modes in ROWS:
        alone = losses(router, options, {})
        name = ", ".join([router, *(f"{option} = {value}" for option, value in options.items())])
        for parallel in modes:
            here = losses(router, options, parallel) if parallel else alone
            most = max(abs(ours - theirs) for ours, theirs in zip(here, alone, strict=True))
            way = ", ".join(f"{kind} = {count}" for kind, count in parallel.items())
            numbers = [f"{loss:.6f}" for loss in here]
            rows.append((name, way or "one process", *numbers, f"{most:.1e}" if parallel else ""))
    header = ("router", "parallel", "training loss", "held-out loss", "largest difference")
    table = Table(header, rows).to_markdown()
    page = PAGE.read_text(encoding="utf-8")
    assert PLACE.search(page)
    PAGE.write_text(PLACE.sub(lambda at: f"{at[1]}\n{table.strip()}\n\n{at[2]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
