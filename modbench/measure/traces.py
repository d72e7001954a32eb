"""Routing over the course of training: the decisions of each routed layer on one fixed batch of held-out
text under the causal rule, as `modbench.records.traces` packs them.

Windows are run one at a time, so that the numbers depend on no batch size.

W windows, T tokens, N tokens that reach a layer, E experts.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modbench.data.shards import Tokens
from modbench.measure.loss import heldout_windows, window_starts
from modbench.measure.routing import added_by, routed_layers
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace
from modbench.records.traces import Kind, packed

#: Tokens of the fixed batch, and its fewest windows: one to fit rules on and one to score them. With
#: 3072 tokens and seven points, the record of eight experts in four layers has less than 200 kB.
TOKENS, _FEWEST = 3072, 2
#: Numbers beyond this are those of a model that diverged; a record holds none.
_LARGEST = 1e30
#: What layers show of their decisions and gates, by kind.
_SHOWN: dict[Kind, tuple[str, str]] = {"depth": ("selected", "gate"), "experts": ("chosen", "weights")}
_Shown = dict[tuple[int, Kind], tuple[Tensor, Tensor | None]]


def batch_of(heldout_N: Tokens, sequence: int) -> dict[str, Any]:
    """Arguments of `heldout_windows` that give the fixed batch, the same for all runs on a text."""
    tokens = max(TOKENS, _FEWEST * sequence)
    return {"heldout_N": heldout_N, "sequence": sequence, "tokens": tokens}


def traced_windows(heldout_N: Tokens, sequence: int) -> np.ndarray:
    """The windows (W, T + 1) of the fixed batch. Raises UserError: see `heldout_windows`."""
    return heldout_windows(**batch_of(heldout_N, sequence))


def traced_point(model: LanguageModel, windows_WT: np.ndarray, share: float) -> dict[str, Any]:
    """Routing at the ``share`` of a run, a `modbench.records.traces.TracedPoint`. The model is left in
    its mode."""
    return _point(model, windows_WT, share)[0]


def traces(
    model: LanguageModel,
    windows_WT: np.ndarray,
    earlier: Sequence[Mapping[str, Any]],
    heldout_N: Tokens,
    end: int,
) -> dict[str, Any]:
    """Routing of a trained model, a `modbench.records.traces.Traces`. ``earlier``: points of its
    training; ``end``: the id that ends a document of ``heldout_N``."""
    point, changes = _point(model, windows_WT, 1.0, with_gates=True)
    starts = window_starts(**batch_of(heldout_N, windows_WT.shape[1] - 1))
    ends_N = np.asarray(heldout_N[: starts[-1]]) == end
    losses = [token_losses(model, window_T, Context(selection="causal")) for window_T in windows_WT]
    return {
        "windows": len(windows_WT),
        "sequence": windows_WT.shape[1] - 1,
        "ids": packed(windows_WT[:, :-1], "<u4"),
        "end": end,
        "first": [int(ends_N[:start].sum()) for start in starts],
        "losses": packed(np.concatenate(losses), "<f2"),
        "points": [*earlier, point],
        "changes": [] if point["layers"] else changes,
    }


@torch.no_grad()
def token_losses(model: LanguageModel, window_T: np.ndarray, context: Context) -> np.ndarray:
    """The loss (T,) of each token of a window (T + 1) in nats."""
    window_1T = torch.from_numpy(window_T[None]).to(next(model.parameters()).device)
    # A copy, since layers may write to the tokens they get.
    losses_1T = model.losses(window_1T[:, :-1].clone(), window_1T[:, 1:], context)
    return losses_1T[0].double().cpu().numpy()


@torch.no_grad()
def _point(
    model: LanguageModel, windows_WT: np.ndarray, share: float, *, with_gates: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """A point, and the packed norms (N,) of what each layer of a decoder changes."""
    trained = model.training
    model.eval()
    shown: dict[tuple[int, Kind], list[tuple[Tensor, Tensor | None]]] = defaultdict(list)
    added, changes = defaultdict[int, list[Tensor]](list), defaultdict[int, list[Tensor]](list)
    series = defaultdict[str, list[float]](list)
    for window_T in windows_WT:
        context = Context(selection="causal", trace=Trace(detailed=True))
        tokens_1T = torch.from_numpy(window_T[None, :-1].copy()).to(next(model.parameters()).device)
        if isinstance(model, Decoder):
            for number, share_N, change_1T in added_by(model, tokens_1T, context):
                added[number].append(share_N)
                changes[number].append(change_1T[0])
        else:  # the layers of a model of transformers are not run one by one
            model.hidden(tokens_1T, context)
        for place, of_window in decided(context.trace, len(window_T) - 1).items():
            shown[place].append(of_window)
        for name, values in context.trace.series.items():
            series[name] += [float(value) for value in values]
    model.train(trained)
    routed = routed_layers(model) if isinstance(model, Decoder) else []
    layers = [_layer(*place, shown[place], with_gates=with_gates) for place in sorted(shown)]
    for layer in layers:
        if layer["layer"] in routed:
            layer["added"] = _finite(torch.cat(added[layer["layer"]]).double().mean().item())
    means = {name: _finite(float(np.mean(values))) for name, values in series.items()}
    packed_changes = [packed(torch.cat(changes[of]).cpu().numpy(), "<f2") for of in sorted(changes)]
    return {"share": share, "layers": [*map(_known, layers)], "series": _known(means)}, packed_changes


def decided(trace: Trace, tokens: int) -> _Shown:
    """The decisions in ``trace`` of a window, (N, 1) or (N, E), and their gates. Experts that process
    other tokens than the selected ones, as in recursions, are left out."""
    found: _Shown = {}
    for layer, name in trace.tensors:
        for kind, (decided, gate) in _SHOWN.items():
            if name == decided:
                selected_1T = trace.tensors.get((layer, "selected"))
                chosen, gates = trace.tensors[layer, name], trace.tensors.get((layer, gate))
                if kind == "depth":
                    chosen, gates = chosen[0, :, None], None if gates is None else gates[0, :, None]
                elif len(chosen) != (tokens if selected_1T is None else int(selected_1T.sum())):
                    continue
                found[layer, kind] = chosen, gates
    return found


def _layer(
    number: int, kind: Kind, shown: Sequence[tuple[Tensor, Tensor | None]], *, with_gates: bool
) -> dict[str, Any]:
    """A `modbench.records.traces.TracedLayer`, of all windows."""
    chosen_NE = torch.cat([chosen for chosen, _ in shown]).cpu()
    entry: dict[str, Any] = {"layer": number, "kind": kind, "experts": chosen_NE.shape[1]}
    entry["chosen"] = packed(chosen_NE.numpy())
    if all(gates is not None for _, gates in shown):
        gates_NE = torch.cat([gates for _, gates in shown if gates is not None]).double().cpu()
        of_chosen = gates_NE[chosen_NE]
        moments = [_finite(of_chosen.mean().item()), _finite(of_chosen.std(correction=0).item())]
        entry["gate"] = None if None in moments else moments
        if with_gates:  # of experts, that of largest magnitude
            first_N1 = gates_NE.abs().argmax(1, keepdim=True)
            entry["gates"] = packed(gates_NE.gather(1, first_N1).numpy(), "<f2")
    return entry


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def _finite(value: float) -> float | None:
    return value if abs(value) < _LARGEST else None
