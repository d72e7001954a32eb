"""Advice on failed probes: one sentence that explains the failure and the fix, and the page to read.

The first cause that the probe's figure names applies; without one, `modbench.records.probes` says it.
"""

from modbench.audit.finding import Finding
from modbench.records.probes import PROBE_TEXTS

_GUIDE = "modbench docs writing_a_router"
#: Causes that a figure names: probes (none: all), text of the figure, advice, anchor of the guide;
#: without an anchor, the probe's section of the page `audit`.
_CAUSES: tuple[tuple[tuple[int, ...], str, str, str], ...] = (
    (
        (),
        "more than 1 value per channel",
        "BatchNorm mixes the tokens of a batch and fails for a single one; normalise each token alone "
        "(RMSNorm, LayerNorm)",
        "",
    ),
    ((), "raised ", "The router's code raises an error here; correct the line", ""),
    (
        (),
        "NaN or Inf",
        "The router computes values that are not finite; check divisions, logarithms and empty "
        "selections",
        "",
    ),
    (
        (8, 10),
        "is a BatchNorm",
        "BatchNorm mixes the tokens of a batch, padding included; normalise each token alone (RMSNorm, "
        "LayerNorm)",
        "",
    ),
    (
        (10,),
        "running_",
        "BatchNorm's averages depend on padding and on repeated passes; normalise each token alone "
        "(RMSNorm, LayerNorm)",
        "",
    ),
    (
        (1, 10),
        "two equal passes",
        "Scores are random; draw random numbers in training only, with `generator=tokens.generator`",
        "state",
    ),
    (
        (10,),
        "two equal training steps",
        "Training depends on what neither a seed nor a buffer determines; draw noise with "
        "`generator=tokens.generator`, not with numpy or random, and keep state in buffers",
        "state",
    ),
    (
        (10,),
        "under activation checkpointing",
        "Activation checkpointing repeats a pass, which must decide as before and update nothing; "
        "update buffers in `update`, and read them from `tokens.state`",
        "state",
    ),
    (
        (10,),
        "not in state_dict",
        "A resumed run would lose this state; register it as a buffer",
        "state",
    ),
    (
        (1, 10),
        "scoring (",
        "Scoring changes state, and so the scores of the next text; update buffers in `update`",
        "state",
    ),
    (
        (1,),
        "detailed",
        "Statistics change the result; compute the same whether they are recorded or not",
        "",
    ),
    (
        (3,),
        "caches",
        "The cache and the selection disagree; cache the keys of selected tokens only",
        "",
    ),
    (
        (4,),
        "causal rule selects",
        "The causal rule is constant; train it, or correct its threshold",
        "causal",
    ),
    (
        (4,),
        "in training",
        "Nominal FLOPs assume another number of tokens; state the right one, or hold the number there "
        "by a loss or in `update`",
        "",
    ),
    (
        (4,),
        "equal scores",
        "Ties are broken at random or towards later tokens; prefer the earlier one",
        "",
    ),
    ((5,), "writes into its input", "The layer changes its input in place; write to a copy", ""),
    (
        (8,),
        "buffer '",
        "A buffer depends on padding or on the order of sequences; update it in `update`, which sees no "
        "padding, from averages over all tokens",
        "state",
    ),
    ((8,), "reordered", "A loss depends on the order of the sequences; average over all tokens", ""),
    ((8,), "padding", "A loss depends on padding; leave padding out of it", ""),
    (
        (8,),
        "same weights",
        "Routers that start equal learn the same; draw initial weights for each of them",
        "",
    ),
    (
        (9,),
        "active parameters",
        "The table would show too few active parameters; correct `active_parameters`",
        "",
    ),
)


def section(finding: Finding) -> str:
    """Name the section of the page `audit` on the finding's probe."""
    return f"modbench docs audit#{finding.probe}-{finding.name.replace(' ', '-')}"


def advice(finding: Finding) -> str:
    """Return what the failed ``finding`` means and what to do, with the section to read."""
    general = PROBE_TEXTS[finding.probe - 1]
    words, anchor = next(
        (
            (words, anchor)
            for probes, text, words, anchor in _CAUSES
            if text in finding.figure and finding.probe in (probes or (finding.probe,))
        ),
        (f"{general.means}; {general.remedy}", general.guide),
    )
    return f"{words} (`{f'{_GUIDE}#{anchor}' if anchor else section(finding)}`)."


def sentence(finding: Finding) -> str:
    """Describe the failed ``finding``: its figure, what it means, and what to do."""
    unranked = " Not ranked." if finding.ranks else ""
    return f"FAILED {finding.probe} {finding.name}: {finding.figure}. {advice(finding)}{unranked}"
