"""The table of metrics: what each measured figure means, its unit, and how two may be compared.

Pure Python: the measurements name their results after it and the report lays its columns out by it,
without either knowing the other.
"""

from dataclasses import dataclass
from typing import Literal

from modbench.errors import UserError, known_names

Direction = Literal["lower", "higher", "none"]
Kind = Literal["exact", "timed", "quality"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured figure.

    ``kind`` says how it may be compared: ``exact`` with ==; ``timed`` only within one run on one
    machine (its value in a record is ``{"median", "iqr", "n", "stable"}``, seconds or bytes);
    ``quality`` by mean and interval over seeds.
    """

    name: str
    unit: str
    direction: Direction
    kind: Kind
    meaning: str


_TABLE = (
    Metric(
        name="heldout_loss",
        unit="nats/token",
        direction="lower",
        kind="quality",
        meaning="held-out cross-entropy under the causal selection rule",
    ),
    Metric(
        name="heldout_bits_per_byte",
        unit="bits/byte",
        direction="lower",
        kind="quality",
        meaning="the same loss per byte of held-out text, comparable across tokenizers",
    ),
    Metric(
        name="heldout_loss_leaky",
        unit="nats/token",
        direction="none",
        kind="quality",
        meaning="held-out cross-entropy under the training rule, which may look at later tokens",
    ),
    Metric(
        name="leak",
        unit="nats/token",
        direction="none",
        kind="quality",
        meaning="causal loss minus leaky loss: what looking ahead would have flattered; may be below 0 "
        "where the training rule drops tokens that the causal rule keeps",
    ),
    Metric(
        name="flip_rate",
        unit="share",
        direction="none",
        kind="quality",
        meaning="of the tokens of routed layers, those whose selection differs between "
        "training and causal rule",
    ),
    Metric(
        name="realised_capacity",
        unit="share",
        direction="none",
        kind="quality",
        meaning="of the tokens of routed layers, those that enter under the causal rule",
    ),
    Metric(
        name="gate_scale",
        unit="1",
        direction="none",
        kind="quality",
        meaning="mean magnitude of the gate of the tokens that enter",
    ),
    Metric(
        name="causal_rule_accuracy",
        unit="share",
        direction="none",
        kind="quality",
        meaning="of the training rule's choices, token by token, those that the causal rule "
        "makes alike on the same stream",
    ),
    Metric(
        name="causal_rule_base_rate",
        unit="share",
        direction="none",
        kind="quality",
        meaning="accuracy of a rule that lets nobody in: what to hold causal_rule_accuracy against",
    ),
    Metric(
        name="causal_rule_precision",
        unit="share",
        direction="none",
        kind="quality",
        meaning="of the tokens that the causal rule lets in, those that the training rule does",
    ),
    Metric(
        name="causal_rule_recall",
        unit="share",
        direction="none",
        kind="quality",
        meaning="of the tokens that the training rule lets in, those that the causal rule does",
    ),
    Metric(
        name="expert_flip_rate",
        unit="share",
        direction="none",
        kind="quality",
        meaning="of the pairs of a token and an expert, where experts choose, those whose choice "
        "differs between training and causal rule",
    ),
    Metric(
        name="expert_realised_capacity",
        unit="experts/token",
        direction="none",
        kind="quality",
        meaning="experts that take a token under the causal rule, on average, where experts choose",
    ),
    Metric(
        name="expert_gate_scale",
        unit="1",
        direction="none",
        kind="quality",
        meaning="of the tokens that an expert takes, the mean sum of what its experts' outputs are "
        "multiplied by",
    ),
    Metric(
        name="expert_load_peak",
        unit="x",
        direction="none",
        kind="quality",
        meaning="load of the busiest expert over the mean, averaged over layers",
    ),
    Metric(
        name="expert_load_entropy",
        unit="share",
        direction="none",
        kind="quality",
        meaning="entropy of the experts' load over that of an even one, averaged over layers",
    ),
    Metric(
        name="dead_experts",
        unit="experts",
        direction="none",
        kind="quality",
        meaning="experts of all layers that no held-out token went to",
    ),
    Metric(
        name="untaken_tokens",
        unit="share",
        direction="none",
        kind="quality",
        meaning="tokens that no expert took, where experts choose",
    ),
    Metric(
        name="no_op_choices",
        unit="share",
        direction="none",
        kind="quality",
        meaning="of the tokens' choices of experts, those that fall on experts that do nothing",
    ),
    Metric(
        name="no_op_tokens",
        unit="share",
        direction="none",
        kind="quality",
        meaning="tokens that choose no expert but such as do nothing, and so pass by",
    ),
    Metric(
        name="dropped_assignments",
        unit="share",
        direction="none",
        kind="quality",
        meaning="assignments beyond an expert's capacity, under the training rule",
    ),
    Metric(
        name="unigram_loss",
        unit="nats/token",
        direction="none",
        kind="exact",
        meaning="held-out cross-entropy of the training text's token frequencies",
    ),
    Metric(
        name="train_steps",
        unit="steps",
        direction="none",
        kind="exact",
        meaning="optimizer steps taken until the budget was spent",
    ),
    Metric(
        name="train_tokens",
        unit="tokens",
        direction="none",
        kind="exact",
        meaning="training tokens seen",
    ),
    Metric(
        name="train_flops_nominal",
        unit="FLOP",
        direction="none",
        kind="exact",
        meaning="training FLOPs that the options promise, convention model",
    ),
    Metric(
        name="train_flops",
        unit="FLOP",
        direction="none",
        kind="exact",
        meaning="training FLOPs of the routing that took place, convention model",
    ),
    Metric(
        name="train_flops_per_token",
        unit="FLOP/token",
        direction="lower",
        kind="exact",
        meaning="nominal forward and backward FLOPs per training token, convention model",
    ),
    Metric(
        name="forward_flops_per_token",
        unit="FLOP/token",
        direction="lower",
        kind="exact",
        meaning="nominal forward FLOPs per token, convention model",
    ),
    Metric(
        name="forward_flops_per_token_full",
        unit="FLOP/token",
        direction="lower",
        kind="exact",
        meaning="nominal forward FLOPs per token, convention full (square attention)",
    ),
    Metric(
        name="forward_flops_per_token_realised",
        unit="FLOP/token",
        direction="lower",
        kind="quality",
        meaning="forward FLOPs per held-out token that the causal rule selected, convention model",
    ),
    Metric(
        name="forward_flops_per_token_dispatched",
        unit="FLOP/token",
        direction="lower",
        kind="quality",
        meaning="forward FLOPs per held-out token computed, padded slots included, convention model",
    ),
    Metric(
        name="parameters",
        unit="parameters",
        direction="none",
        kind="exact",
        meaning="all trained parameters",
    ),
    Metric(
        name="active_parameters",
        unit="parameters",
        direction="none",
        kind="exact",
        meaning="parameters that one token meets when it is routed everywhere it can be",
    ),
    Metric(
        name="kv_cache_bytes_per_token",
        unit="bytes/token",
        direction="lower",
        kind="quality",
        meaning="keys and values that all layers keep per held-out token, causal rule, in float32; "
        "empty where decoding through the cache fails its probe",
    ),
    Metric(
        name="kv_cache_share",
        unit="share",
        direction="lower",
        kind="quality",
        meaning="of the bytes that all tokens would keep in all layers, those that are kept",
    ),
    Metric(
        name="forward_seconds",
        unit="s",
        direction="lower",
        kind="timed",
        meaning="wall time of one forward pass of one batch under the training rule, no gradients",
    ),
    Metric(
        name="train_step_seconds",
        unit="s",
        direction="lower",
        kind="timed",
        meaning="wall time of one training step: forward, backward, clipping, optimizer",
    ),
    Metric(
        name="peak_memory_bytes",
        unit="bytes",
        direction="lower",
        kind="timed",
        meaning="peak memory of training steps, in a process of its own, above what that holds once it "
        "has taken the same steps and let go of all",
    ),
    Metric(
        name="modbench_cloze",
        unit="accuracy",
        direction="higher",
        kind="quality",
        meaning="four-way cloze accuracy on held-out sentences, causal rule, scored by lm-eval",
    ),
    Metric(
        name="modbench_cloze_untrained",
        unit="accuracy",
        direction="none",
        kind="quality",
        meaning="the same model before training",
    ),
    Metric(
        name="modbench_cloze_chance",
        unit="accuracy",
        direction="none",
        kind="exact",
        meaning="one over the number of choices",
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}


def metric(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        UserError: no such metric; the sentence names the nearest and lists them all.
    """
    if name not in METRICS:
        raise UserError(f"metric '{name}' is not known; {known_names(name, METRICS)}")
    return METRICS[name]


def ranking_metric(name: str) -> Metric:
    """The metric called ``name``, if a table can be ranked by it: it has a better side, and its values
    may be compared across runs.

    Raises:
        UserError: no such metric, or it can't rank.
    """
    found = metric(name)
    if found.direction == "none" or found.kind == "timed":
        usable = [m.name for m in METRICS.values() if m.direction != "none" and m.kind != "timed"]
        raise UserError(f"rank_by is '{name}', which can't rank; {known_names(name, usable)}")
    return found
