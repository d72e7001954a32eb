"""The routing of one held-out passage, token by token.

T tokens of a window, N tokens that reach an expert layer, E experts.
"""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch

from modbench.model.context import Context, Selection
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace

#: Largest number of tokens of the passage: two strips of the figure.
PASSAGE_TOKENS = 128
#: Gates above this, and NaN, are those of a model that diverged.
_LARGEST = 1e30


@torch.no_grad()
def passage_routing(
    model: LanguageModel, window_T: np.ndarray, pieces: Sequence[bytes]
) -> dict[str, Any]:
    """The routing of the first `PASSAGE_TOKENS` of the window (T + 1) in a pass over all T of its
    tokens, in the format of `modbench.records.routing`.

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
        routing[rule] = _depth(trace, with_gates=rule == "causal")
        if rule == "causal":
            routing["experts"] = _experts(trace, len(ids_T))
    return routing


def _depth(trace: Trace, *, with_gates: bool) -> list[dict[str, Any]]:
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


def _experts(trace: Trace, tokens: int) -> list[dict[str, Any]]:
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
