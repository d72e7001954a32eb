"""Validation loss under both selection rules, routing statistics, KV cache."""

from typing import Any

from torch import Tensor

from modbench.measure.histograms import RoutingHistograms
from modbench.measure.loss import HeldoutLoss, heldout_loss, unigram_loss
from modbench.measure.routing import kv_cache_measures, layer_measures, passage_routing, routing_measures
from modbench.model.context import Selection
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace
from modbench.sweep.run_job import RunWork


def heldout(
    model: LanguageModel, work: RunWork, settings: dict[str, Any], budget: int
) -> dict[str, Any]:
    """Losses, realised FLOPs and routing of the trained ``model`` on held-out text; the KV cache if the
    scheme decodes correctly; the routing histograms, the routing of the first window's first tokens, and
    what each routed layer adds."""
    windows_WT = work.windows(settings["heldout_tokens"])
    curve_WT = work.windows(settings["curve_tokens"])
    histograms = RoutingHistograms(sequence=work.train.sequence)

    def scored(rule: Selection) -> HeldoutLoss:
        counts = histograms.watch(rule)

        def watch(tokens_BT: Tensor, trace: Trace) -> None:
            work.stage.tell()  # so that a long text is not taken for a job that hangs
            counts(tokens_BT, trace)

        return heldout_loss(model, windows_WT, work.data.token_bytes_V, selection=rule, watch=watch)

    causal, leaky = scored("causal"), scored("topk")
    result: dict[str, Any] = {}
    if routing := histograms.as_dict():
        pieces = work.data.tokenizer.pieces
        routing["passage"] = passage_routing(model, windows_WT[0], pieces)
        result["routing"] = routing
    metrics = {
        "heldout_loss": causal.nats_per_token,
        "heldout_bits_per_byte": causal.bits_per_byte,
        "heldout_loss_leaky": leaky.nats_per_token,
        "leak": causal.nats_per_token - leaky.nats_per_token,
        "unigram_loss": unigram_loss(work.data.train_N, windows_WT, work.run.model.vocabulary),
        "forward_flops_per_token_realised": causal.realised_flops_per_token,
        "forward_flops_per_token_dispatched": causal.dispatched_flops_per_token,
    }
    metrics |= routing_measures(model, curve_WT)
    if layers := layer_measures(model, curve_WT):
        result["layers"] = layers
    if work.decodes:
        metrics |= kv_cache_measures(model, curve_WT)
    return result | {"metrics": metrics}
