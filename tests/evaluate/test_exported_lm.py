"""Our depth-routed models, exported and scored by lm-eval's own adapter of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.models.huggingface import HFLM
from local_tasks import write_tasks
from trained_runs import add_records, record_of, save_trained

from modbench.evaluate.downstream import evaluate
from modbench.evaluate.hub_lm import load_hub_lm
from modbench.evaluate.loaded_lm import load_lm
from modbench.train.checkpoint import save_weights
from modbench.trained.export import export
from modbench.trained.load import load_trained

SHAPE = {"vocabulary": 259, "width": 32, "layers": 2, "heads": 4, "mlp_width": 48}
OPTIONS: dict[str, dict[str, Any]] = {
    "mod": {"capacity": 0.5},
    "mode_staged": {"capacity": 0.5, "experts": 4},
}


@pytest.mark.parametrize("router", OPTIONS)
def test_an_exported_model_scores_what_it_did(router: str, tmp_path: Path) -> None:
    results = tmp_path / "my-results"
    record = record_of("one", router, 0, options=OPTIONS[router], model=SHAPE, sequence=64)
    add_records(results, record)
    weights = save_trained(results, "tiny/one", [(104, 101), (116, 256)])
    model = load_trained(weights).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_weights(weights / "model.safetensors", model, key=record.key)
    out = tmp_path / "out"
    export(load_trained(weights), "hf", out)
    theirs = HFLM(pretrained=str(out), batch_size=2, device="cpu")
    data = write_tasks(tmp_path / "data")
    for ours in (load_lm(str(weights)).lm, load_hub_lm(out)):
        for evaluation in evaluate(ours, ["arc_easy", "piqa"], include=data):
            task = evaluation.tasks[evaluation.name]
            answers = [
                resp[0] for instance in task.instances for resp in [instance.filtered_resps["none"]]
            ]
            lm_eval_evaluate(theirs, {"tasks": {evaluation.name: task}}, bootstrap_iters=0)
            expected = [instance.filtered_resps["none"][0] for instance in task.instances]
            assert len(answers) > 10
            for one, two in zip(answers, expected, strict=True):
                assert abs(one - two) < 1e-4
