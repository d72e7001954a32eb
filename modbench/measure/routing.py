"""Routing metrics on held-out text: selections under both rules, how well the causal rule predicts the
training rule, and how evenly experts are used.

B sequences, T tokens, E experts.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from modbench.measure.loss import SCORING_BATCH
from modbench.measure.nominal_capacity import nominal_capacities
from modbench.model.context import Context
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder


@torch.no_grad()
def routing_measures(
    model: RoutedDecoder, windows_WT: np.ndarray, *, batch: int = SCORING_BATCH
) -> dict[str, float]:
    """Routing metrics over ``windows_WT``, each processed under both rules. A scheme has the metrics of
    what its layers show, see `modbench.model.trace.Trace`: depth-routed layers show ``selected``,
    ``gate`` and ``predicted`` (the causal rule's choice on the training rule's stream); experts show
    ``load``, ``dropped``, ``chosen``, ``weights``, and ``taken`` if they choose tokens."""
    on = next(model.parameters()).device
    model.eval()
    sums: dict[str, float] = defaultdict(float)
    loads_E: dict[int, torch.Tensor] = {}
    nominal: dict[str, float] = {}
    for start in range(0, len(windows_WT), batch):
        tokens_BT = torch.from_numpy(windows_WT[start : start + batch]).to(on)[:, :-1]
        traces = []
        for rule in ("topk", "causal"):
            context = Context(selection=rule, trace=Trace(detailed=True))  # type: ignore[arg-type]
            model(tokens_BT, context)
            traces.append(context.trace)
        _depth(sums, *traces)
        _experts(sums, loads_E, *traces)
        nominal = nominal or nominal_capacities(model, traces[1], tokens_BT.shape[1])
    return _rates(sums) | nominal | _evenness(list(loads_E.values()))


def _depth(sums: dict[str, float], training: Trace, causal: Trace) -> None:
    for (layer, name), selected_BT in causal.tensors.items():
        member_BT = training.tensors.get((layer, "selected"))
        if name != "selected" or member_BT is None:
            continue
        sums["routed"] += selected_BT.numel()
        sums["entered"] += selected_BT.sum().item()
        sums["flipped"] += (selected_BT != member_BT).sum().item()
        gate_BT = causal.tensors.get((layer, "gate"))
        if gate_BT is not None:
            sums["gated"] += selected_BT.sum().item()
            sums["gate"] += gate_BT.abs().mul(selected_BT).sum().item()
        predicted_BT = training.tensors.get((layer, "predicted"))
        if predicted_BT is not None:
            # Recursions route only the candidates; skipping the others needs no prediction.
            candidate_BT = training.tensors.get((layer, "candidates"), torch.ones_like(member_BT))
            member_BT, predicted_BT = member_BT & candidate_BT, predicted_BT & candidate_BT
            sums["judged"] += candidate_BT.sum().item()
            sums["members"] += member_BT.sum().item()
            sums["predicted"] += predicted_BT.sum().item()
            sums["hits"] += (predicted_BT & member_BT).sum().item()


def _experts(
    sums: dict[str, float], loads_E: dict[int, torch.Tensor], training: Trace, causal: Trace
) -> None:
    for (layer, name), value in causal.tensors.items():
        if name == "load":
            loads_E[layer] = loads_E.get(layer, 0) + value.double().cpu()
        elif name == "taken":
            # Without padding, if the layer shows its choices.
            chosen_NE = causal.tensors.get((layer, "chosen"))
            taken_N = value if chosen_NE is None else chosen_NE.sum(-1)
            sums["offered"] += taken_N.numel()
            sums["untaken"] += (taken_N == 0).sum().item()
            sums["taken"] += taken_N.sum().item()
            _flips(sums, layer, training, causal)
        elif name == "weights":
            met_N = value.count_nonzero(-1) > 0
            sums["met"] += met_N.sum().item()
            sums["weight"] += value.abs().sum().item()
        elif name == "no_op":
            chosen_N = causal.tensors[layer, "chosen"].sum(-1)
            sums["choosing"] += chosen_N.numel()
            sums["choices"] += chosen_N.sum().item()
            sums["no_op_choices"] += value.sum().item()
            sums["no_op_tokens"] += (value == chosen_N).sum().item()
    for (layer, name), dropped_E in training.tensors.items():
        if name == "dropped":
            sums["dropped"] += dropped_E.sum().item()
            sums["assigned"] += (dropped_E.sum() + training.tensors[layer, "load"].sum()).item()


def _flips(sums: dict[str, float], layer: int, training: Trace, causal: Trace) -> None:
    """Count flipped choices of a layer that processes the same tokens under both rules, which a
    depth-routed layer does not."""
    pair = [trace.tensors.get((layer, "chosen")) for trace in (training, causal)]
    if (layer, "selected") in causal.tensors or pair[0] is None or pair[1] is None:
        return
    sums["pairs"] += pair[1].numel()
    sums["flipped_pairs"] += (pair[0] != pair[1]).sum().item()


def _rates(sums: dict[str, float]) -> dict[str, float]:
    rates: dict[str, Any] = {}
    if sums["routed"]:
        rates["flip_rate"] = sums["flipped"] / sums["routed"]
        rates["realised_capacity"] = sums["entered"] / sums["routed"]
    if sums["gated"]:
        rates["gate_scale"] = sums["gate"] / sums["gated"]
    if sums["judged"]:
        wrong = sums["predicted"] + sums["members"] - 2 * sums["hits"]
        rates["causal_rule_accuracy"] = 1 - wrong / sums["judged"]
        rates["causal_rule_base_rate"] = 1 - sums["members"] / sums["judged"]
        rates["causal_rule_recall"] = sums["hits"] / sums["members"]
        if sums["predicted"]:
            rates["causal_rule_precision"] = sums["hits"] / sums["predicted"]
    if sums["offered"]:
        rates["untaken_tokens"] = sums["untaken"] / sums["offered"]
        rates["expert_realised_capacity"] = sums["taken"] / sums["offered"]
    if sums["pairs"]:
        rates["expert_flip_rate"] = sums["flipped_pairs"] / sums["pairs"]
    if sums["met"]:
        rates["expert_gate_scale"] = sums["weight"] / sums["met"]
    if sums["choosing"]:
        rates["no_op_choices"] = sums["no_op_choices"] / sums["choices"]
        rates["no_op_tokens"] = sums["no_op_tokens"] / sums["choosing"]
    if sums["assigned"]:
        rates["dropped_assignments"] = sums["dropped"] / sums["assigned"]
    return rates


def _evenness(loads_E: list[torch.Tensor]) -> dict[str, float]:
    """Load balance of the layers whose experts processed any tokens."""
    shares_E = [load_E / load_E.sum() for load_E in loads_E if load_E.sum() > 0]
    if not shares_E:
        return {}
    peaks = [share_E.max().item() * len(share_E) for share_E in shares_E]
    entropies = [
        -torch.special.xlogy(share_E, share_E).sum().item() / max(np.log(len(share_E)), 1e-12)
        for share_E in shares_E
    ]
    return {
        "expert_load_peak": sum(peaks) / len(peaks),
        "expert_load_entropy": sum(entropies) / len(entropies),
        "dead_experts": float(sum(int((load_E == 0).sum()) for load_E in loads_E)),
    }
