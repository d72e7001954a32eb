"""Routing over the course of training: its points during training, the trained model, and the rules that
predict it, for which the dense model of equal shape and seed is another run of the suite."""

import json
from typing import Any

import numpy as np

from modbench.measure.traces import traced_windows, traces
from modbench.model.language_model import LanguageModel
from modbench.records.line import canonical_json
from modbench.records.store import read_measurement
from modbench.records.traces import Place, Traces
from modbench.sweep.job import earlier_points, trace_file
from modbench.sweep.run_job import RunWork


def routing(
    model: LanguageModel, work: RunWork, settings: dict[str, Any], budget: int
) -> dict[str, Any]:
    """The routing of the trained ``model`` on the fixed batch, with that of earlier points."""
    shares = earlier_points([{"measures": "routing", "settings": settings}])
    earlier = [json.loads(trace_file(work.folder, share).read_bytes()) for share in shares]
    found = _traces(model, work, earlier)
    work.say({"event": "routing", "step": None, "series": found["points"][-1]["series"]})
    return {"traces": found}


def routing_rules(
    model: LanguageModel, work: RunWork, settings: dict[str, Any], budget: int
) -> dict[str, Any]:
    """The predictors of the routing of the trained ``model``, and its losses under each of them.
    ``settings``: the key of the routing record of the ``dense`` run, if there is one."""
    from modbench.analysis.routing import Predictors  # with scipy, which other jobs do not need
    from modbench.measure.rules import rule_losses

    own = Traces.model_validate_json(canonical_json(_traces(model, work, []))).arrays()
    record = read_measurement(work.job.results, settings.get("dense", ""))
    other = record.result.traces.arrays() if record and record.result.traces else None
    predictors = Predictors(
        own.ids_WT,
        capacity=work.run.router.options.get("capacity"),
        dense_WT=other.losses_WT if other else None,
        changes_LN=other.changes_LN if other else (),
    )
    scores: dict[Place, dict[str, np.ndarray]] = {}
    layers = []
    for (layer, kind), of in own.end.items():
        work.stage.tell()
        scores[layer, kind], areas = predictors.of(layer, of.chosen_NE, of.reached_N)
        layers.append({"layer": layer, "kind": kind, "auc": areas})
    windows_WT = traced_windows(work.data.heldout_N, work.train.sequence)
    losses = rule_losses(model, windows_WT, scores)
    return {"rules": {"layers": layers, "losses": losses, "windows": len(windows_WT) // 2}}


def _traces(model: LanguageModel, work: RunWork, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    windows_WT = traced_windows(work.data.heldout_N, work.train.sequence)
    return traces(model, windows_WT, earlier, work.data.heldout_N, work.data.tokenizer.end_of_text)
