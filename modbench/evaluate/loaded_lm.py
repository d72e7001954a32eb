"""Language models for lm-eval from a trained run, a folder of weights, or a model folder of Hugging Face
transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  first: lm-eval registers its models only if there are none yet
import torch
from lm_eval.api.registry import model_registry
from lm_eval.utils import simple_parse_args_string

from modbench.data.config import DataConfig
from modbench.errors import UserError, known_names
from modbench.evaluate.routed_lm import RoutedLM
from modbench.evaluate.scored_lm import Batch, ScoredLM
from modbench.model.context import Selection
from modbench.routing.registry import load_plugin
from modbench.train.numerics import pin_attention
from modbench.trained.load import leak_of, load_trained
from modbench.trained.weights_folder import DESCRIPTION


@dataclass(frozen=True, kw_only=True)
class LoadedLM:
    """A language model, its ``name`` in tables, the corpus of its training, None for a model of another
    kind, and the audit's verdict on leaks, ``not audited`` where there is none."""

    lm: ScoredLM
    name: str
    data: DataConfig | None
    leak: str


def load_lm(
    run: str | Path,
    *,
    results: Path | None = None,
    plugins: Sequence[str | Path] = (),
    batch: Batch = "auto",
    rule: Selection = "causal",
    device: str = "cpu",
) -> LoadedLM:
    """Load ``run``: a path of `modbench.load`, SUITE/LABEL in the folder ``results``, or a folder with
    the config.json of a causal language model of transformers.

    Raises UserError: as `load_trained`; as `load_hub_lm`; the rule ``topk`` for a model of transformers,
    which has no training rule.
    """
    if not _has(device):
        raise UserError(f"device '{device}' is not available; use cpu, or cuda where there is a GPU")
    pin_attention()
    folder = Path(run)
    if (folder / "config.json").is_file() and not (folder / DESCRIPTION).is_file():
        if rule != "causal":
            raise UserError(f"{folder} is a model of transformers, which has no rule '{rule}'")
        for plugin in plugins:
            load_plugin(plugin)
        from modbench.evaluate.hub_lm import load_hub_lm  # needs the extra hf

        lm: ScoredLM = load_hub_lm(folder, batch=batch, device=device)
        return LoadedLM(lm=lm, name=folder.resolve().name, data=None, leak="not audited")
    loaded = load_trained(run, plugins, results=results)
    lm = RoutedLM(
        loaded.model.to(device),
        loaded.tokenizer,
        sequence=loaded.sequence,
        batch=batch,
        rule=rule,
    )
    return LoadedLM(lm=lm, name=loaded.label, data=loaded.run.data, leak=leak_of(loaded))


def _has(device: str) -> bool:
    """Return True if tensors can be put on ``device``."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # of a PyTorch without CUDA
        return False
    return True


class ModbenchLM(RoutedLM):
    """The model ``modbench`` of lm-eval's command line, ``--model_args pretrained=RUN``; see `load_lm`.
    Further arguments: ``results``, ``plugin``, ``rule``."""

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> ScoredLM:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> ScoredLM:
        stated = {**arg_dict, **{k: v for k, v in (additional_config or {}).items() if v is not None}}
        known = {"pretrained", "results", "plugin", "rule", "batch_size", "max_batch_size", "device"}
        if unknown := sorted(stated.keys() - known):
            raise UserError(
                f"model argument '{unknown[0]}' is not known; {known_names(unknown[0], known)}"
            )
        if "pretrained" not in stated:
            raise UserError(
                "model 'modbench' needs --model_args pretrained=RUN, such as my-results/quick/mod"
            )
        device = str(stated.get("device") or "cpu")
        size = str(stated.get("batch_size", "auto"))
        return load_lm(
            stated["pretrained"],
            results=Path(stated["results"]) if "results" in stated else None,
            plugins=[stated["plugin"]] if "plugin" in stated else (),
            batch="auto" if size.startswith("auto") else int(size),
            rule=stated.get("rule", "causal"),
            # lm-eval's own default is cuda:0.
            device=device if _has(device) else "cpu",
        ).lm


if "modbench" not in model_registry:  # an lm-eval that reads entry points has it already
    model_registry.register("modbench")(ModbenchLM)
