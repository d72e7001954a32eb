"""lm-eval's own result and sample files: ``FOLDER/MODEL/results_DATE.json`` and
``samples_TASK_DATE.jsonl``."""

import json
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from lm_eval.loggers.evaluation_tracker import EvaluationTracker
from lm_eval.utils import handle_non_serializable, hash_string

from modbench.errors import UserError
from modbench.evaluate.downstream.evaluation import BOOTSTRAP, Evaluation
from modbench.evaluate.downstream.loading import FEWSHOT_SEED, NUMPY_SEED, SEED
from modbench.evaluate.scored_lm import ScoredLM

#: Parts of lm-eval's results that have an entry per task.
_BY_TASK = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
)


class ResultFiles:
    """Writes the files of one call. After each task they hold all that are done.

    Raises UserError: ``folder`` cannot be written.
    """

    def __init__(self, folder: Path, name: str, lm: ScoredLM, *, limit: int | None) -> None:
        self.tracker = EvaluationTracker(output_path=str(folder))
        general = self.tracker.general_config_tracker
        # Like lm-eval's folder of a local model: its name with / as __.
        general.log_experiment_args("modbench", {"pretrained": name}, None, None, False)
        self.tracker.date_id = datetime.now().isoformat().replace(":", "-")
        self.folder = folder / str(general.model_name_sanitized)
        config = {
            "model": "modbench",
            "model_args": {"pretrained": name},
            **lm.get_model_info(),
            "batch_size": str(lm.batch),
            "batch_sizes": [],
            "device": str(lm.device),
            "use_cache": None,
            "limit": limit,
            "bootstrap_iters": BOOTSTRAP,
            "gen_kwargs": None,
            "random_seed": SEED,
            "numpy_seed": NUMPY_SEED,
            "torch_seed": None,
            "fewshot_seed": FEWSHOT_SEED,
        }
        self.results: dict[str, Any] = {
            **{part: {} for part in _BY_TASK if part != "groups"},
            "config": config,
            "date": time.time(),
            "max_length": lm.max_length,
            "eot_token_id": lm.eot_token_id,
            "task_hashes": {},
        }

    @property
    def path(self) -> Path:
        """The file of results."""
        return self.folder / f"results_{self.tracker.date_id}.json"

    def add(self, evaluation: Evaluation, modbench: dict[str, Any]) -> None:
        """Write the samples of ``evaluation``, and results that hold it too. ``modbench``: entries under
        that name, for what lm-eval has no place for."""
        results = evaluation.results
        for part in _BY_TASK:
            if part in results:
                self.results.setdefault(part, {}).update(results[part])
        self.results.setdefault("modbench", {})[evaluation.name] = modbench
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for task, samples in results.get("samples", {}).items():
                hashes = [s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples]
                self.results["task_hashes"][task] = hash_string("".join(hashes))
                rule = self.results["config"]["selection_rule"]
                labelled = [{**sample, "selection_rule": rule} for sample in samples]
                self.tracker.save_results_samples(task, labelled)
                written = self.folder / f"samples_{task}_{self.tracker.date_id}.jsonl"
                if not written.is_file():  # lm-eval only logs an error
                    raise UserError(f"{written} can't be written; give --out a folder you may write to")
            self.tracker.general_config_tracker.log_end_time()
            whole = {**self.results, **asdict(self.tracker.general_config_tracker)}
            text = json.dumps(whole, indent=2, default=handle_non_serializable, ensure_ascii=False)
            half = self.path.with_suffix(".tmp")
            half.write_text(text, encoding="utf-8")
            half.replace(self.path)
        except OSError as error:
            raise UserError(
                f"{self.folder} can't be written ({error.strerror}); give --out another folder"
            ) from error
