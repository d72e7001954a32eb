"""A suite of made-up labels to be timed."""

from pathlib import Path

SUITE = """
[suite]
name = "fake"
[model]
width = 32
layers = 2
heads = 4
[data]
tokenizer = "bytes"
[train]
sequence = 16
batch = 1
[sweep]
budgets = [1e9, 2e9]
seeds = [0, 1]
[time]
repetitions = 3
threads = 1
"""


#: What makes an isoFLOP suite of it.
ISOFLOP = (
    "[sweep]\nbudgets = [1e9, 2e9]",
    "[isoflop]\nwidth_step = 4\nhead_width = 4\n[sweep]\nbudgets = [1e10, 4e10]",
)


def write_suite(place: Path, *labels: str) -> None:
    routers = ["vanilla", "mod", "token_choice"]
    schemes = (
        f'[[schemes]]\nrouter = "{router}"\nlabel = "{label}"\n'
        for router, label in zip(routers, labels, strict=False)
    )
    (place / "suite.toml").write_text(SUITE + "\n".join(schemes))
