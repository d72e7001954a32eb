"""Step ``heldout``: held-out loss under both selection rules, routing statistics, KV cache."""

from typing import Any

from torch import Tensor

from modbench.measure.histograms import RoutingHistograms
from modbench.measure.loss import HeldoutLoss, heldout_loss, unigram_loss
from modbench.measure.passage import passage_routing
from modbench.measure.routing import kv_cache_measures, layer_measures, routing_measures
from modbench.model.context import Selection
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder
from modbench.sweep.cell import CellRun


def heldout(model: RoutedDecoder, cell: CellRun) -> dict[str, Any]:
    """Losses, realised FLOPs and routing on held-out text; the KV cache if the scheme decodes
    correctly. Stores the routing histograms, the routing of the first window's first tokens, and what
    each routed layer adds."""
    windows_WT = cell.windows(cell.measure.heldout_tokens)
    curve_WT = cell.windows(cell.measure.curve_tokens)
    histograms = RoutingHistograms(sequence=cell.train.sequence)

    def scored(rule: Selection) -> HeldoutLoss:
        counts = histograms.watch(rule)

        def watch(tokens_BT: Tensor, trace: Trace) -> None:
            cell.stage.tell()  # so that a long text is not taken for a cell that hangs
            counts(tokens_BT, trace)

        return heldout_loss(model, windows_WT, cell.data.token_bytes_V, selection=rule, watch=watch)

    causal, leaky = scored("causal"), scored("topk")
    routing = histograms.as_dict()
    if routing:
        pieces = cell.data.tokenizer.pieces
        routing["passage"] = passage_routing(model, windows_WT[0], pieces)
    cell.found["routing"] = routing
    metrics = {
        "heldout_loss": causal.nats_per_token,
        "heldout_bits_per_byte": causal.bits_per_byte,
        "heldout_loss_leaky": leaky.nats_per_token,
        "leak": causal.nats_per_token - leaky.nats_per_token,
        "unigram_loss": unigram_loss(cell.data.train_N, windows_WT, cell.cell["model"]["vocabulary"]),
        "forward_flops_per_token_realised": causal.realised_flops_per_token,
        "forward_flops_per_token_dispatched": causal.dispatched_flops_per_token,
    }
    metrics |= routing_measures(model, curve_WT)
    if layers := layer_measures(model, curve_WT):
        cell.found["layers"] = layers
    if cell.decodes:
        metrics |= kv_cache_measures(model, curve_WT)
    return metrics
