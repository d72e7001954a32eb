"""Validation loss with the selection of a trained model replaced by rules that predict it.

W windows, T tokens of a window, N = W * T, E experts, K experts of a token.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from modbench.analysis.routing import chosen_like
from modbench.measure.traces import decided, token_losses
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace
from modbench.records.traces import Place


@torch.no_grad()
def rule_losses(
    model: LanguageModel,
    windows_WT: np.ndarray,
    scores: Mapping[Place, Mapping[str, np.ndarray]],
) -> dict[str, float]:
    """Losses in nats per token of the windows that no rule was fitted on (every second one), by rule:
    ``own`` selection, a ``random`` one, and that of each rule which all layers of ``scores`` have: by
    layer and kind, (N, E) each.

    A layer processes as many tokens of a window as by its own causal rule, those that score highest; or
    an expert does; or a token has as many experts. Gates stay: a depth router gives each token its own,
    a token that chooses experts gives the same gates to others, best first. In a scheme with both, the
    selection over depth is replaced alone. Only ``own`` if nothing is replaced, or the scheme's layers
    do not take decisions from outside."""
    model.eval()
    kind = "depth" if any(of == "depth" for _, of in scores) else "experts"
    layers = {place: of for place, of in scores.items() if place[1] == kind}
    known = [{*of} for of in layers.values()]
    names = [name for name in next(iter(layers.values()), {}) if all(name in of for of in known)]
    random = np.random.default_rng(0)
    tokens = windows_WT.shape[1] - 1
    losses: dict[str, list[float]] = {of: [] for of in ("own", *(("random", *names) if layers else ()))}
    for window in range(1, len(windows_WT), 2):
        own: dict[Place, tuple[np.ndarray, bool]] = {}
        for rule in losses:
            wanted = dict[Place, np.ndarray]()
            replaced = dict[tuple[int, str], Tensor]()
            for place, (own_TE, is_choice) in own.items():
                score_TE = 1e-9 * random.random(own_TE.shape)  # decides ties
                if rule != "random":
                    score_TE += layers[place][rule][window * tokens : (window + 1) * tokens]
                wanted[place] = chosen_like(score_TE, own_TE, int(is_choice))
                given = wanted[place].T if kind == "depth" else wanted[place]
                if is_choice:  # ids, best first
                    given = (-score_TE).argsort(1, kind="stable")[:, : own_TE[0].sum()]
                replaced[place] = torch.from_numpy(given.copy()).to(next(model.parameters()).device)
            context = Context(selection="causal", trace=Trace(detailed=True), replaced=replaced)
            losses[rule].append(float(token_losses(model, windows_WT[window], context).mean()))
            found = decided(context.trace, tokens)
            taken = {place: found[place][0].cpu().numpy() for place in layers}
            if any(not np.array_equal(taken[place], of) for place, of in wanted.items()):
                return {"own": float(np.mean(losses["own"]))}
            if rule == "own":  # the first one
                ranked = {of for of, name in context.trace.tensors if name == "taken"}
                own = {of: (taken[of], kind == "experts" and of[0] not in ranked) for of in layers}
    return {rule: float(np.mean(of)) for rule, of in losses.items()}
