"""The table of metrics: meaning, unit, and how two values may be compared.

Pure Python. Measurements name their results after it, and the report derives its columns from it.
"""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher", "none"]
Kind = Literal["exact", "timed", "quality"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    ``kind`` tells how values may be compared: ``exact`` with ==; ``timed`` only within one session of
    `modbench time`, whose records hold it; ``quality`` by mean and interval over seeds.
    """

    name: str
    unit: str
    direction: Direction
    kind: Kind
    meaning: str


# fmt: off
_TABLE = (
    Metric("heldout_loss", "nats/token", "lower", "quality",
           "validation loss: cross-entropy on held-out text under the causal selection rule"),
    Metric("heldout_bits_per_byte", "bits/byte", "lower", "quality",
           "validation loss per byte of held-out text, comparable across tokenizers"),
    Metric("heldout_loss_leaky", "nats/token", "none", "quality",
           "validation loss under the training rule, which may look at later tokens"),
    Metric("leak", "nats/token", "none", "quality",
           "causal loss minus leaky loss: the gain from looking ahead; may be below 0"),
    Metric("flip_rate", "share", "none", "quality",
           "of the tokens of routed layers, those whose selection differs between training and "
           "causal rule"),
    Metric("realised_capacity", "share", "none", "quality",
           "of the tokens of routed layers, those selected under the causal rule"),
    Metric("nominal_capacity", "share", "none", "exact",
           "nominal share of the tokens of routed layers that are selected"),
    Metric("gate_scale", "1", "none", "quality",
           "mean magnitude of the gate of selected tokens, over all layers (older records)"),
    Metric("causal_rule_accuracy", "share", "none", "quality",
           "share of tokens on which causal and training rule agree, on the same residual stream"),
    Metric("causal_rule_base_rate", "share", "none", "quality",
           "accuracy of the always-skip baseline, to compare causal_rule_accuracy with"),
    Metric("causal_rule_precision", "share", "none", "quality",
           "of the tokens that the causal rule selects, those that the training rule selects"),
    Metric("causal_rule_recall", "share", "none", "quality",
           "of the tokens that the training rule selects, those that the causal rule selects"),
    Metric("expert_flip_rate", "share", "none", "quality",
           "of the pairs of a token and an expert, where experts choose, those whose choice differs "
           "between training and causal rule"),
    Metric("expert_realised_capacity", "experts/token", "none", "quality",
           "mean number of experts per token under the causal rule, where experts choose"),
    Metric("expert_nominal_capacity", "experts/token", "none", "exact",
           "nominal number of experts per token, where experts choose"),
    Metric("expert_gate_scale", "1", "none", "quality",
           "mean sum of the gates of the tokens that any expert chooses"),
    Metric("expert_load_peak", "x", "none", "quality",
           "load of the busiest expert over the mean, averaged over layers"),
    Metric("expert_load_entropy", "share", "none", "quality",
           "entropy of the experts' load over that of an even one, averaged over layers"),
    Metric("dead_experts", "experts", "none", "quality",
           "experts of all layers without a held-out token"),
    Metric("untaken_tokens", "share", "none", "quality",
           "tokens that no expert chooses, where experts choose"),
    Metric("no_op_choices", "share", "none", "quality",
           "of the tokens' choices of experts, those that fall on no-op experts"),
    Metric("no_op_tokens", "share", "none", "quality",
           "tokens that choose no-op experts only, and so skip the layer"),
    Metric("dropped_assignments", "share", "none", "quality",
           "assignments beyond an expert's capacity, under the training rule"),
    Metric("unigram_loss", "nats/token", "none", "exact",
           "held-out cross-entropy of the training text's token frequencies"),
    Metric("train_steps", "steps", "none", "exact",
           "optimizer steps taken until the budget was spent"),
    Metric("train_tokens", "tokens", "none", "exact",
           "training tokens seen"),
    Metric("train_flops_nominal", "FLOP", "none", "exact",
           "training FLOPs by the options, convention model"),
    Metric("train_flops", "FLOP", "none", "exact",
           "training FLOPs of the routing that took place, convention model"),
    Metric("train_flops_per_token", "FLOP/token", "lower", "exact",
           "nominal forward and backward FLOPs per training token, convention model"),
    Metric("optimizer_flops_per_token", "FLOP/token", "lower", "exact",
           "matmul FLOPs of the optimizer's step per training token, convention executed; no part of "
           "budgets; AdamW has none"),
    Metric("forward_flops_per_token", "FLOP/token", "lower", "exact",
           "nominal forward FLOPs per token, convention model"),
    Metric("forward_flops_per_token_full", "FLOP/token", "lower", "exact",
           "nominal forward FLOPs per token, convention full (square attention)"),
    Metric("forward_flops_per_token_realised", "FLOP/token", "lower", "quality",
           "forward FLOPs per held-out token that the causal rule selected, convention model"),
    Metric("forward_flops_per_token_dispatched", "FLOP/token", "lower", "quality",
           "forward FLOPs per held-out token computed, padded slots included, convention model"),
    Metric("parameters", "parameters", "none", "exact",
           "all trained parameters"),
    Metric("active_parameters", "parameters", "none", "exact",
           "active parameters of a token routed at every layer"),
    Metric("kv_cache_bytes_per_token", "bytes/token", "lower", "quality",
           "keys and values that all layers keep per held-out token, causal rule, in float32"),
    Metric("kv_cache_share", "share", "lower", "quality",
           "of the bytes that all tokens would keep in all layers, those that are kept"),
    Metric("forward_seconds", "s", "lower", "timed",
           "wall time of a forward pass of one batch, training rule, no gradients"),
    Metric("train_step_seconds", "s", "lower", "timed",
           "wall time of one training step: forward, backward, clipping, optimizer"),
    Metric("peak_memory_bytes", "bytes", "lower", "timed",
           "peak memory of training steps above the baseline"),
    Metric("modbench_cloze", "accuracy", "higher", "quality",
           "four-way cloze accuracy on held-out sentences; column modbench_cloze:acc"),
    Metric("modbench_cloze_untrained", "accuracy", "none", "quality",
           "the model with random weights; column modbench_cloze:acc_untrained"),
    Metric("modbench_cloze_chance", "accuracy", "none", "exact",
           "one over the number of choices; column modbench_cloze:acc_chance"),
)
# fmt: on

METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}
