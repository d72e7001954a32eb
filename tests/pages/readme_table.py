"""Writes the table of the README, and its example row in ``docs/reading_the_table.md``, from
``results/quick/leaderboard.csv``: ``python tests/pages/readme_table.py``; ``--check`` compares only.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from suite_keys import filled

ROOT = Path(__file__).parents[2]
CSV = ROOT / "results" / "quick" / "leaderboard.csv"
PAGES = {"table": ROOT / "README.md", "row": ROOT / "docs" / "reading_the_table.md"}
COLUMNS = (
    "rank",
    "scheme",
    "held-out loss (nats/token)",
    "forward FLOP/token",
    "training tokens",
    "parameters, active / all",
    "KV cache, share of dense",
    "audit",
)


def rows() -> Iterator[list[str]]:
    """The cells of each row, in the order of the leaderboard."""
    with CSV.open(newline="") as file:
        for line in csv.DictReader(file):
            loss, spread = float(line["heldout_loss"]), line["heldout_loss_high"]
            interval = f" ± {float(spread) - loss:.4f}" if spread else ""
            yield [
                line["rank"] or "-",
                line["label"],
                f"{loss:.4f}{interval}",
                f"{float(line['forward_flops_per_token_realised']) / 1e6:.2f} M",
                f"{int(line['train_tokens']):,}",
                f"{_millions(line['active_parameters'])} / {_millions(line['parameters'])}",
                f"{float(line['kv_cache_share']):.3f}" if line["kv_cache_share"] else "-",
                line["audit"],
            ]


def _millions(number: str) -> str:
    return f"{int(number) / 1e6:.2f} M"


def table(only: str = "") -> str:
    """The table in Markdown; of the scheme ``only``, if one is named."""
    lines = [COLUMNS, ("---:", "---", *["---:"] * 5, "---")]
    chosen = [row for row in rows() if not only or row[1] == only]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (*lines, *chosen))


def texts() -> dict[str, str]:
    return {"table": table(), "row": table("mod")}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of the README.")
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    only_check, code = parser.parse_args().check, 0
    for page in PAGES.values():
        text = filled(page.read_text(), texts())
        if only_check and text != page.read_text():
            print(f"{page.name} differs; run python tests/pages/readme_table.py", file=sys.stderr)
            code = 1
        elif not only_check:
            page.write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
