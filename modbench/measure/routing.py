"""Routing metrics on held-out text: selections under both rules, how well the causal rule predicts the
training rule, what each layer adds, how evenly experts are used, and the size of the KV cache; and the
routing of one passage, token by token.

B sequences, T tokens, D model width, W windows, N tokens that reach an expert layer, E experts.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from modbench.ledger import Workload
from modbench.measure.loss import SCORING_BATCH
from modbench.model.block import Block
from modbench.model.context import Context, Selection
from modbench.model.decoder import Decoder
from modbench.model.generate import dense_cache_bytes, prefill
from modbench.model.language_model import LanguageModel
from modbench.model.layer import Layer
from modbench.model.mlp import MLP
from modbench.model.trace import Trace

#: Each metric is a quotient of two sums over tokens and layers.
_RATES = {
    "flip_rate": ("flipped", "routed"),
    "realised_capacity": ("entered", "routed"),
    "causal_rule_accuracy": ("right", "judged"),
    "causal_rule_base_rate": ("skipped", "judged"),
    "causal_rule_recall": ("hits", "members"),
    "causal_rule_precision": ("hits", "predicted"),
    "untaken_tokens": ("untaken", "offered"),
    "expert_realised_capacity": ("taken", "offered"),
    "expert_flip_rate": ("flipped_pairs", "pairs"),
    "expert_gate_scale": ("weight", "met"),
    "no_op_choices": ("no_op_choices", "choices"),
    "no_op_tokens": ("no_op_tokens", "choosing"),
    "dropped_assignments": ("dropped", "assigned"),
}


@torch.no_grad()
def routing_measures(
    model: LanguageModel, windows_WT: np.ndarray, *, batch: int = SCORING_BATCH
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
        training, causal = (
            Context(selection="topk", trace=Trace(detailed=True)),
            Context(selection="causal", trace=Trace(detailed=True)),
        )
        for context in (training, causal):
            model(tokens_BT, context)
        _depth(sums, training.trace, causal.trace)
        _experts(sums, loads_E, training.trace, causal.trace)
        nominal = nominal or _nominal_capacities(model, causal.trace, tokens_BT.shape[1])
    rates = {name: sums[part] / sums[of] for name, (part, of) in _RATES.items() if sums[of]}
    return rates | nominal | _evenness(list(loads_E.values()))


def _depth(sums: dict[str, float], training: Trace, causal: Trace) -> None:
    for (layer, name), selected_BT in causal.tensors.items():
        member_BT = training.tensors.get((layer, "selected"))
        if name != "selected" or member_BT is None:
            continue
        sums["routed"] += selected_BT.numel()
        sums["entered"] += selected_BT.sum().item()
        sums["flipped"] += (selected_BT != member_BT).sum().item()
        predicted_BT = training.tensors.get((layer, "predicted"))
        if predicted_BT is not None:
            # Recursions route only the candidates; skipping the others needs no prediction.
            candidate_BT = training.tensors.get((layer, "candidates"), torch.ones_like(member_BT))
            member_BT, predicted_BT = member_BT[candidate_BT], predicted_BT[candidate_BT]
            sums["judged"] += member_BT.numel()
            sums["members"] += member_BT.sum().item()
            sums["skipped"] += (~member_BT).sum().item()
            sums["predicted"] += predicted_BT.sum().item()
            sums["hits"] += (predicted_BT & member_BT).sum().item()
            sums["right"] += (predicted_BT == member_BT).sum().item()


def _experts(
    sums: dict[str, float], loads_E: dict[int, torch.Tensor], training: Trace, causal: Trace
) -> None:
    for (layer, name), value in causal.tensors.items():
        chosen_NE = causal.tensors.get((layer, "chosen"))
        if name == "load":
            loads_E[layer] = loads_E.get(layer, 0) + value.double().cpu()
        elif name == "taken" and chosen_NE is not None:  # without padding, unlike ``taken`` itself
            taken_N = chosen_NE.sum(-1)
            before_NE = training.tensors.get((layer, "chosen"))
            sums["offered"] += taken_N.numel()
            sums["untaken"] += (taken_N == 0).sum().item()
            sums["taken"] += taken_N.sum().item()
            # A depth-routed layer processes other tokens under each rule.
            if before_NE is not None and (layer, "selected") not in causal.tensors:
                sums["pairs"] += chosen_NE.numel()
                sums["flipped_pairs"] += (before_NE != chosen_NE).sum().item()
        elif name == "weights":
            sums["met"] += value.any(-1).sum().item()
            sums["weight"] += value.abs().sum().item()
        elif name == "no_op" and chosen_NE is not None:
            sums["choosing"] += len(chosen_NE)
            sums["choices"] += chosen_NE.sum().item()
            sums["no_op_choices"] += value.sum().item()
            sums["no_op_tokens"] += (value == chosen_NE.sum(-1)).sum().item()
    for (layer, name), dropped_E in training.tensors.items():
        if name == "dropped":
            sums["dropped"] += dropped_E.sum().item()
            sums["assigned"] += (dropped_E.sum() + training.tensors[layer, "load"].sum()).item()


@torch.no_grad()
def layer_measures(
    model: LanguageModel, windows_WT: np.ndarray, *, batch: int = SCORING_BATCH
) -> list[dict[str, Any]]:
    """Effect of each routed layer on the tokens of ``windows_WT`` that it selects, under the causal
    rule: its number ``layer``; ``added``, the mean of the norm of what it adds over the norm of the
    residual stream, 0 if it selects none; and where it shows a gate, ``gate_scale``, the mean magnitude
    of the gate.

    A layer with experts in place of the MLP adds their output, and selects the tokens that they process.
    A layer that shows no ``selected`` selects the tokens that it changes. Layers that hold a plain block
    alone, or no parameter, are left out, except for their gate; all those of a model of transformers
    are."""
    if not isinstance(model, Decoder):
        return []
    on = next(model.parameters()).device
    model.eval()
    sums: dict[tuple[int, str], float] = defaultdict(float)
    routed = routed_layers(model)
    for start in range(0, len(windows_WT), batch):
        tokens_BT = torch.from_numpy(windows_WT[start : start + batch]).to(on)[:, :-1]
        context = Context(selection="causal")
        for number, share_N, _ in added_by(model, tokens_BT, context):
            if number in routed:
                sums[number, "added"] += share_N.double().sum().item()
                sums[number, "selected"] += len(share_N)
        for (number, name), gate_BT in context.trace.tensors.items():
            shown_BT = context.trace.tensors.get((number, "selected"))
            if name == "gate" and shown_BT is not None:
                sums[number, "gate"] += gate_BT[shown_BT].double().abs().sum().item()
                sums[number, "gated"] += shown_BT.sum().item()
    entries: dict[int, dict[str, Any]] = {number: {"layer": number} for number, _ in sorted(sums)}
    for number, entry in entries.items():
        if number in routed:
            entry["added"] = sums[number, "added"] / max(sums[number, "selected"], 1)
        if sums[number, "gated"]:
            entry["gate_scale"] = sums[number, "gate"] / sums[number, "gated"]
    return list(entries.values())


def added_by(
    model: Decoder, tokens_BT: Tensor, context: Context
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Run the layers one by one, and yield the number of each; the norm of what it adds to the tokens
    that it selects, (N,), over that of their stream (`layer_measures`); and the norm of its change of
    all tokens, (B, T)."""
    fed = dict[Layer, Tensor | None]()

    def run(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
        out_BTD, fed[layer] = _with_fed(layer, x_BTD, context)
        return out_BTD

    for number, layer, before_BTD, after_BTD in model.layer_by_layer(tokens_BT, context, run):
        shown_BT = context.trace.tensors.get((number, "selected"))
        fed_BTD, change_BTD = fed[layer], after_BTD - before_BTD
        added_BTD = change_BTD if fed_BTD is None else fed_BTD
        stream_BTD = before_BTD if fed_BTD is None else after_BTD - fed_BTD
        selected_BT = added_BTD.any(-1) if shown_BT is None else shown_BT
        share_BT = added_BTD.norm(dim=-1) / stream_BTD.norm(dim=-1).clamp(min=1e-30)
        yield number, share_BT[selected_BT], change_BTD.norm(dim=-1)


def routed_layers(model: Decoder) -> list[int]:
    """The numbers of the layers that are no dense block and compute something."""
    return [
        number
        for number, layer in enumerate(model.layers)
        if not (isinstance(layer, Block) and type(layer.feed_forward) is MLP)
        and next(layer.parameters(), None) is not None
    ]


def _with_fed(layer: nn.Module, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
    """Return the output of ``layer``, and of a block what its feed-forward part adds, (B, T, D)."""
    fed: list[Tensor] = []

    def keep(part: nn.Module, given: object, out_BTD: Tensor) -> None:
        fed.append(out_BTD)

    with ExitStack() as hooks:
        if isinstance(layer, Block):
            hooks.callback(layer.feed_forward.register_forward_hook(keep).remove)
        out_BTD = layer(x_BTD, context)
    return out_BTD, fed[0] if fed else None


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


def _nominal_capacities(model: LanguageModel, trace: Trace, tokens: int) -> dict[str, float]:
    """Nominal values of ``realised_capacity`` and ``expert_realised_capacity`` for sequences of
    ``tokens``, averaged over the layers that show ``selected`` or ``taken`` in ``trace`` (causal rule).
    Empty if no layer states an expected count."""
    expected = model.expected_counts(Workload(lengths=(tokens,)))
    depth = {
        layer: counts[0]
        for (layer, name), counts in expected.items()
        if name == "depth" and (layer, "selected") in trace.tensors
    }
    experts = [
        counts[0] / depth.get(layer, tokens)  # of the tokens that reach the experts
        for (layer, name), counts in expected.items()
        if name == "experts" and (layer, "taken") in trace.tensors
    ]
    nominal = {}
    if depth:
        nominal["nominal_capacity"] = sum(depth.values()) / len(depth) / tokens
    if experts:
        nominal["expert_nominal_capacity"] = sum(experts) / len(experts)
    return nominal


@torch.no_grad()
def kv_cache_measures(
    model: LanguageModel, windows_WT: np.ndarray, *, batch: int = SCORING_BATCH
) -> dict[str, float]:
    """Process ``windows_WT`` under the causal rule, each with an empty cache: cached bytes per token,
    without preallocated room, and their share of a dense cache. A token that skips a layer leaves no
    key there."""
    on = next(model.parameters()).device
    model.eval()
    kept, tokens = 0, 0
    for start in range(0, len(windows_WT), batch):
        tokens_BT = torch.from_numpy(windows_WT[start : start + batch]).to(on)[:, :-1]
        _, cache = prefill(model, tokens_BT)
        kept += cache.bytes
        tokens += tokens_BT.numel()
    return {
        "kv_cache_bytes_per_token": kept / tokens,
        "kv_cache_share": kept / dense_cache_bytes(model, tokens),
    }


#: Largest number of tokens of the passage: two strips of the figure.
PASSAGE_TOKENS = 128
#: Gates above this, and NaN, are those of a model that diverged.
_LARGEST = 1e30


@torch.no_grad()
def passage_routing(
    model: LanguageModel, window_T: np.ndarray, pieces: Sequence[bytes]
) -> dict[str, Any]:
    """The routing of the first `PASSAGE_TOKENS` of the window (T + 1) in a pass over all T of its
    tokens, in the format of `modbench.records.sections`.

    ``pieces``: bytes of each token id. Both rules have the tokens that each depth-routed layer selects;
    the causal rule also has their gates, unless all are equal, and for layers in which every token
    chooses experts, the expert with the largest gate; -1 if all its choices are no-op experts."""
    model.eval()
    ids_T = window_T[:-1]
    tokens_1T = torch.from_numpy(ids_T[None]).to(next(model.parameters()).device)
    texts = [pieces[index].decode("utf-8", "backslashreplace") for index in ids_T[:PASSAGE_TOKENS]]
    routing: dict[str, Any] = {"texts": texts, "experts": []}
    rules: tuple[Selection, ...] = get_args(Selection)
    for rule in rules:
        trace = Trace(detailed=True)
        model(tokens_1T.clone(), Context(selection=rule, trace=trace))
        routing[rule] = _selections(trace, with_gates=rule == "causal")
        if rule == "causal":
            routing["experts"] = _first_choices(trace, len(ids_T))
    return routing


def _selections(trace: Trace, *, with_gates: bool) -> list[dict[str, Any]]:
    layers = []
    for (layer, name), shown in sorted(trace.tensors.items(), key=lambda item: item[0]):
        if name != "selected":
            continue
        mask = "".join("01"[chosen] for chosen in shown[0, :PASSAGE_TOKENS].tolist())
        entry: dict[str, Any] = {"layer": layer, "selected": mask}
        gate_T = trace.tensors.get((layer, "gate"), torch.ones_like(shown))[0, :PASSAGE_TOKENS]
        if with_gates and (gate_T != gate_T[0]).any() and (gate_T.abs() < _LARGEST).all():
            entry["gates"] = [float(f"{gate:.3g}") for gate in gate_T.tolist()]
        layers.append(entry)
    return layers


def _first_choices(trace: Trace, tokens: int) -> list[dict[str, Any]]:
    """First choices of layers in which all ``tokens`` choose experts. Layers that show ``taken`` are
    those in which experts choose tokens."""
    layers = []
    for (layer, name), chosen_NE in sorted(trace.tensors.items(), key=lambda item: item[0]):
        if name != "chosen" or len(chosen_NE) != tokens or (layer, "taken") in trace.tensors:
            continue
        gates_NE = trace.tensors[layer, "weights"].abs().masked_fill(~chosen_NE, -1.0)
        first_N = gates_NE.argmax(1)
        if (layer, "no_op") in trace.tensors:
            first_N[trace.tensors[layer, "no_op"] == chosen_NE.sum(1)] = -1
        layers.append({"layer": layer, "first": first_N[:PASSAGE_TOKENS].tolist()})
    return layers
