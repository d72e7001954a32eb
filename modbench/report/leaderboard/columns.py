"""Columns of the tables of leaderboard.md: heading, cells and meaning, for the page and the docs."""

from collections.abc import Iterable
from dataclasses import dataclass

from modbench.report.table import Markdown, Table


@dataclass(frozen=True)
class Column:
    """A column. ``cells``: metrics and their formats, see
    `modbench.report.leaderboard.metric_cells.metric_text`; empty if its cells are no metrics."""

    heading: str
    meaning: str
    better: str = ""
    cells: str = ""


#: The rows that may be the best one, of any table.
GROUP = Column(
    "group",
    "rows are sorted by validation loss. *Best*: the first one. *Not separable*: not "
    "significantly worse than the first one (adjusted p above 0.05); with a probability of 95 %, the "
    "truly best row is one of these. *Worse than best*: significantly. `-`: the data allow no verdict. "
    "`†`: a remark below the table",
)
#: The comparison with the dense row.
MINUS = Column(
    "minus dense (nats/token)",
    "mean difference to the dense row over runs of the same seed, with the 95 % interval of this one "
    "comparison. The verdict is adjusted for the number of comparisons with the dense row on the page "
    "(Holm): *better*, *worse*, *equivalent* within the margin, or *undecided*. `‡`: runs of another "
    "processor type. The dense row has the router `vanilla` and the shape of most rows; of several "
    "such rows it is the first of the suite",
    "lower",
)
#: The first table of the page, and of the README.
FIRST = (
    GROUP,
    Column(
        "scheme",
        "the label, by default the router with its preset; if it ran at several sizes, the size with "
        "the best mean",
    ),
    Column(
        "validation loss (nats/token)",
        "mean cross-entropy on validation text under the causal rule, which never looks at later "
        "tokens. With several seeds: mean ± half of the 95 % interval",
        "lower",
        "{heldout_loss:.3f}",
    ),
    MINUS,
    Column(
        "realised forward FLOP/token",
        "FLOPs to score one validation token, with the routing that the causal rule selected, "
        "convention `model`",
        "lower",
        "{forward_flops_per_token_realised:si3}",
    ),
    Column(
        "training tokens",
        "tokens trained on until the budget was spent: a scheme with cheaper tokens sees more text",
        "",
        "{train_tokens:,d}",
    ),
    Column(
        "parameters, active / all",
        "parameters that a token uses if it skips no layer / all stored ones. They differ for schemes "
        "with experts",
        "",
        "{active_parameters:si3} / {parameters:si3}",
    ),
    Column(
        "KV cache, share of dense",
        "KV-cache bytes per token, as a share of the same model without skipping. `-`: decoding failed "
        "its probe, or was not run",
        "lower",
        "{kv_cache_share:.3f}",
    ),
    Column(
        "audit",
        "probes passed or *failed*, *n/a* where a probe does not apply to the scheme, and "
        "*unchecked* where it applies and cannot tell. A scheme that fails probe 1, 2, 3 or 9 is not "
        "ranked",
    ),
)
#: The table of the page's details.
MORE = (
    Column("size", "label of the shape, or width x layers of the decoder"),
    Column(
        "bits/byte",
        "validation loss per byte of text; comparable between tokenizers",
        "lower",
        "{heldout_bits_per_byte:.3f}",
    ),
    Column(
        "leaky loss (nats/token)",
        "validation loss under the training rule, which may look ahead. Not a result: no model can "
        "predict text that way",
        "",
        "{heldout_loss_leaky:.3f}",
    ),
    Column(
        "leak (nats/token)",
        "validation loss minus leaky loss: the gain from looking ahead. Near 0 it does not prove a "
        "causal router, since a router may look ahead under both rules; probe 1 does",
        "",
        "{leak:.4f}",
    ),
    Column(
        "cloze accuracy (untrained, chance)",
        "four-way cloze accuracy on validation sentences; in parentheses before training, and by chance",
        "higher",
        "{modbench_cloze:.3f} ({modbench_cloze_untrained:.3f}, {modbench_cloze_chance:.3f})",
    ),
    Column(
        "nominal forward FLOP/token",
        "forward FLOPs per token if as many tokens are routed as the options state",
        "lower",
        "{forward_flops_per_token:si}",
    ),
    Column(
        "training FLOP spent",
        "training FLOPs of the routing that took place; within one step of the budget",
        "",
        "{train_flops:si}",
    ),
    Column("steps", "optimizer steps until the budget was spent", "", "{train_steps:,d}"),
    Column(
        "training step (ms), median ± IQR",
        "wall time of a training step, with the interquartile range. *Unstable*: the times spread too "
        "far for their median to be trusted; *loaded*: the machine had other work while they were "
        "taken",
        "lower",
        "{train_step_seconds:ms}",
    ),
    Column(
        "peak memory (MB)",
        "peak of a training step above the baseline; 1 MB is 10^6 bytes",
        "lower",
        "{peak_memory_bytes:MB}",
    ),
    Column(
        "KV cache (B/token)",
        "keys and values kept per token, in float32",
        "lower",
        "{kv_cache_bytes_per_token:,.0f}",
    ),
    Column(
        "FLOPs",
        "*closed form*: by a formula that the audit compares with the counter; *counted*: by running "
        "the layers on shapes alone",
    ),
)
#: The first tables of an isoFLOP suite's page.
OPTIMA = (
    Column(
        "group",
        "schemes are sorted by loss. *Best*: the first one. *Not separable*: not significantly worse "
        "than the first one (adjusted p above 0.05); with a probability of 95 %, the truly best scheme "
        "is one of these. *Worse than best*: significantly. `-`: the data allow no verdict",
    ),
    Column("scheme", "the router, with its preset or label, at its optimal size"),
    Column(
        "loss at the optimum (nats/token)",
        "validation loss at the minimum of a parabola through the scheme's sizes, with its 95 % "
        "interval",
        "lower",
    ),
    Column(
        "minus dense (nats/token)",
        "that loss minus the dense model's at its own optimum, with the 95 % interval of this one "
        "comparison. The verdict is adjusted for the number of comparisons with the dense model on the "
        "page (Holm): *better*, *worse*, *equivalent* within the margin, or *undecided*. `‡`: runs of "
        "several processor types",
        "lower",
    ),
    Column(
        "speed-up at equal loss (FLOPs)",
        "training FLOPs that the dense model needs for the same loss, over the scheme's. *At least*, "
        "*at most*: the loss lies beyond the dense model's budgets; `?`: that end of the interval does",
        "higher",
    ),
    Column("active parameters", "parameters that one token uses, at the optimum"),
    Column(
        "minimum",
        "*interior*: the lowest loss lies between the smallest and the largest size; in parentheses: "
        "the share of bootstrap samples in which it does, if not in all. Other curves give no optimum: "
        "*edge-low*, *edge-high* (the lowest loss is at an end), *open-down*, *too-few* (fewer than "
        "three sizes)",
    ),
)


def column_table(columns: Iterable[Column]) -> Table:
    """A table with the meaning of ``columns``."""
    rows = [(column.heading, Markdown(column.meaning), column.better) for column in columns]
    return Table(("column", "meaning", "better"), rows, left=range(3), caption="Meaning of the columns")
