"""The probes of the audit: their numbers and names, which of them rank, what a failure means and what to
do about it. Without torch, since reports of records need the numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ProbeText:
    """``means``: what a failure means; ``usually``: the likely causes; ``remedy``: what to do, with the
    anchor ``guide`` of docs/writing_a_router.md, if it has a section. ``ranks``: a failure keeps the
    router out of the ranking. ``of_leaks``: run on trained weights, too."""

    number: int
    name: str
    means: str
    usually: str
    remedy: str
    guide: str = ""
    ranks: bool = False
    of_leaks: bool = False


PROBE_TEXTS = (
    ProbeText(
        1,
        "causal",
        "A prediction depends on later tokens, so held-out losses are too low and text cannot be "
        "generated",
        "a top-k, a mean or a softmax over the sequence is used under the causal rule",
        "use a causal rule for prediction",
        guide="causal",
        ranks=True,
        of_leaks=True,
    ),
    ProbeText(
        2,
        "batch-invariant",
        "A prediction depends on padding or on other sequences of the batch",
        "a threshold, capacity or statistic is computed over the whole batch, or padding is not masked",
        "decide for each token alone, and mask padding",
        guide="causal",
        ranks=True,
        of_leaks=True,
    ),
    ProbeText(
        3,
        "decode parity",
        "Generated text differs from scored text",
        "positions, the decision for a single token, or cached keys differ with a cache, or state is "
        "kept on the module instead of in the cache",
        "decide for each token from its own score and position, and keep what must be remembered in "
        "the cache",
        guide="causal",
        ranks=True,
    ),
    ProbeText(
        4,
        "capacity",
        "The layer does not route as many tokens as its options state, so nominal FLOPs are wrong",
        "the number is rounded differently, padding is selected, or a threshold selects all tokens or "
        "none",
        "correct the rounding, and leave padding out of the selection",
    ),
    ProbeText(
        5,
        "bypass",
        "Tokens shown as skipped are changed",
        "the layer shows another selection than it uses, writes into its input, or processes skipped "
        "tokens in part",
        "show the selection that the layer uses, and change no other token",
    ),
    ProbeText(
        6,
        "unit gate",
        "At gate 1 the layer does not equal its block",
        "the residual is added twice or scaled by the gate, or the gate is normalised over tokens",
        "add the residual once, and multiply only the block's output by the gate",
    ),
    ProbeText(
        7,
        "order and position",
        "Selected tokens are processed in another order or at other positions than in the text",
        "the indices of top-k are not sorted, or positions are counted from 0 among the selected tokens",
        "sort the indices of top-k, and give each token its position in the text",
    ),
    ProbeText(
        8,
        "gradient",
        "The router does not learn, or learns from padding or from one sequence only",
        "the output is not multiplied by a gate that depends on the scores, or the gate is detached",
        "multiply the output by a gate that depends on the scores, without detaching it",
    ),
    ProbeText(
        9,
        "count",
        "Stated and executed FLOPs differ, so the comparison at equal compute is wrong",
        "the ledger or active_parameters misses a matmul, padding, or the cached tokens",
        "if probe 1, 2, 3 or 8 fails, correct that first; move matmuls from other methods into "
        "`scorer`, `feed_forward` or a layer; correct a `ledger` of your own, or remove it",
        ranks=True,
    ),
    ProbeText(
        10,
        "state",
        "A resumed run differs from an uninterrupted one, or a run from its repetition",
        "a counter or threshold is not a buffer, is updated outside training or twice under "
        "activation checkpointing, or initial weights do not follow from the seed",
        "keep state in buffers, update them in training only, and draw initial weights from torch's "
        "generator",
        guide="state",
    ),
    ProbeText(
        11,
        "saving",
        "Skipped tokens are computed and then discarded, so skipping saves no FLOPs",
        "the block runs for all tokens and a mask chooses afterwards",
        "gather the selected tokens before the block",
    ),
)
#: Probes that every run must pass to be ranked.
RANKING_PROBES = tuple(probe.number for probe in PROBE_TEXTS if probe.ranks)
#: Probes that a leak fails.
LEAK_PROBES = tuple(probe.number for probe in PROBE_TEXTS if probe.of_leaks)


def leak_verdict(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return ``passed``; ``failed`` with the probe and its figure; or ``not audited``. ``findings``: of
    the audit of the scheme, and of the trained weights."""
    probes = [probe for probe in findings if probe["probe"] in LEAK_PROBES]
    for probe in probes:
        if probe["verdict"] == "failed":
            return f"failed probe {probe['probe']} {probe['name']}: {probe['figure']}"
    passed = {probe["probe"] for probe in probes if probe["verdict"] == "passed"}
    return "passed" if passed == set(LEAK_PROBES) else "not audited"
