"""Runs causal language models of transformers under the counter, and restores them afterwards.

On the meta device nothing is computed, so any published size can be counted, with three changes. Experts
run as batched matmuls, whose shapes do not depend on the routing. A cache is always given; without one,
transformers reads position numbers. Attention masks are built on the CPU, where the counter can read
them.

B sequences, T tokens.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modbench.counting.counter import FlopCounter
from modbench.errors import UserError, models_code
from modbench.hf.families import FAMILIES, family_reading, load_config
from modbench.hf.families.config import has_no_effect
from modbench.ledger import Phase
from modbench.model.shape import refuse_hub_code

#: Keys of a published config.json that say how weights are stored, or name code to run.
_NOT_THE_MODEL = ("auto_map", "quantization_config", "transformers_version")

Wanted = Literal["all", "last", "loss"]
#: Runs a model on new tokens (B, T); returns the loss if that is wanted.
Pass = Callable[[Tensor, Wanted], Any]


def build(config: Any, device: str, experts: str | None = None) -> nn.Module:
    """Build a model with random weights from a config of transformers, the dict of a config.json or its
    path; ``experts``: the implementation of its experts. Raise a `UserError` if transformers is not
    installed, or the config is not that of a causal language model."""
    transformers = installed()
    from transformers.models.auto import modeling_auto as auto

    if isinstance(config, str | Path):
        config = load_config(config)
    if isinstance(config, transformers.PreTrainedConfig):
        config = config.to_dict()
    elif not isinstance(config, Mapping):
        raise UserError(_not_countable(config))
    # transformers writes into what it is given, such as rope_scaling.
    keys = {key: copy.deepcopy(of) for key, of in config.items() if key not in _NOT_THE_MODEL}
    name = keys.pop("model_type", None)
    refuse_hub_code(keys)
    known = isinstance(name, str) and name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not known and "auto_map" in config:
        raise UserError(
            f"model_type '{name}' is code of its own, in files that its auto_map names, which "
            "is run with trust_remote_code = true alone; else give a model "
            f"that transformers {transformers.__version__} holds"
        )
    if not known:
        raise UserError(
            f"model_type {name!r} is no causal language model that transformers "
            f"{transformers.__version__} knows; with a closed form: {', '.join(sorted(FAMILIES))}"
        )
    if name in FAMILIES:
        family_reading({"model_type": name, **keys})  # says what is wrong in a sentence
    fault = f"config of model_type '{name}' builds no model"
    with models_code(fault, "give another family, or fix it"), torch.device(device):
        built = transformers.AutoConfig.for_model(name, **keys)
        chosen = {} if experts is None else {"experts_implementation": experts}
        model = transformers.AutoModelForCausalLM.from_config(built, **chosen)
    if name not in FAMILIES:
        _name_unknown_keys(built, keys)
    return model  # type: ignore[no-any-return]


def _name_unknown_keys(config: Any, keys: Mapping[str, Any]) -> None:
    """Warn of ``keys`` that transformers' class of ``config`` does not have, and may ignore; of a family
    with a closed form `read_config` names them."""
    kind = type(config)
    known = {"head_dim", *kind.attribute_map, *(field.name for field in fields(kind))}
    unknown = [key for key in keys if key not in known and not has_no_effect(key)]
    if unknown := unknown and [key for key in unknown if key not in vars(kind())]:
        warnings.warn(
            f"config of '{config.model_type}': {kind.__name__} of transformers has no "
            f"{', '.join(unknown)}, and may ignore it",
            stacklevel=4,
        )


def installed() -> Any:
    """Return the module transformers. Raise a `UserError` if it is missing or too old."""
    remedy = "in the clone of modbench, run `python -m pip install '.[hf]'`"
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"a Hugging Face model needs transformers; {remedy}") from error
    version = transformers.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < (5, 18):
        raise UserError(f"a Hugging Face model needs transformers 5.18, not {version}; {remedy}")
    return transformers


def _not_countable(model: Any) -> str:
    return (
        f"{type(model).__name__} can't be counted; give a causal language model of transformers, a "
        "config of one, or a decoder of modbench"
    )


def check(model: nn.Module) -> None:
    """Raise a `UserError` if ``model`` is not a causal language model of transformers."""
    if not isinstance(model, installed().PreTrainedModel):
        raise UserError(_not_countable(model))
    config: Any = model.config
    no_head = not model.can_generate() or model.get_output_embeddings() is None
    if config.is_encoder_decoder or no_head:
        raise UserError(
            f"{type(model).__name__} is no causal language model; build one with "
            "transformers.AutoModelForCausalLM"
        )


@contextmanager
def ready(model: Any, phase: Phase, counter: FlopCounter) -> Iterator[None]:
    """Context in which ``model`` runs ``phase`` under ``counter``, on the meta device too. Raise a
    `UserError` if the model can't run, nothing is trained, or an op is unknown."""
    on_meta = next(model.parameters()).is_meta
    try:
        with fit_for_meta(model) if on_meta else nullcontext():
            yield
        if on_meta and counter.unread_masks:
            raise NotImplementedError("it makes attention masks of its own, which have no values there")
    except UserError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        where = "the meta device" if on_meta else "these inputs"
        remedy = "give it on a CPU" if on_meta else "change them, or count another phase"
        raise UserError(
            f"{type(model).__name__} can't run phase '{phase}' on {where} ({type(error).__name__}: "
            f"{error}); {remedy}"
        ) from error


def model_pass(model: Any, cached: bool) -> Pass:
    """Return what runs ``model`` on new tokens, with a cache if asked for."""
    caches: list[Any] = []

    def run(tokens_BT: Tensor, wanted: Wanted) -> Any:
        if cached and not caches:
            caches.append(installed().DynamicCache(config=model.config))
        cache = caches[0] if cached else None
        options: dict[str, Any] = {"use_cache": cached, "return_dict": True}
        if cached:
            options[cache_argument(model.forward)] = cache
        if wanted == "last":
            if "logits_to_keep" not in inspect.signature(model.forward).parameters:
                raise UserError(
                    f"{type(model).__name__} can't score the last token alone; phases with a cache need "
                    "a model whose forward takes logits_to_keep"
                )
            options["logits_to_keep"] = 1
        if wanted == "loss":
            options["labels"] = tokens_BT
        if tokens_BT.is_meta and model.config._attn_implementation == "sdpa":
            options |= _masks(model, tokens_BT, cache)
        out = model(input_ids=tokens_BT, **options)
        if wanted == "loss" and (out.loss is None or not out.loss.requires_grad):
            raise UserError(
                f"{type(model).__name__} has no loss with a gradient; phase 'train' needs one "
                "parameter or more that requires_grad"
            )
        return out.loss if wanted == "loss" else out

    return run


def cache_argument(function: Callable[..., Any]) -> str:
    """Return the name of the cache argument, which changed within version 5 of transformers."""
    return "cache" if "cache" in inspect.signature(function).parameters else "past_key_values"


def _masks(model: Any, tokens_BT: Tensor, cache: Any) -> dict[str, Any]:
    """Return the attention masks that the model would build, on the CPU, as arguments of its forward."""
    from transformers.masking_utils import create_masks_for_generate

    # Without them in its class, a model makes one mask, of all earlier tokens.
    config = copy.copy(model.config.get_text_config())
    for name in ("layer_types", "sliding_window", "attention_chunk_size"):
        if not hasattr(type(config), name):
            vars(config).pop(name, None)
    made = create_masks_for_generate(
        config=config,
        inputs_embeds=torch.empty(1, tokens_BT.shape[1], 1),
        attention_mask=None,
        **{cache_argument(create_masks_for_generate): cache},
    )
    each = made.values() if isinstance(made, Mapping) else [made]
    return {} if all(mask is None for mask in each) else {"attention_mask": made}


@contextmanager
def fit_for_meta(model: Any) -> Iterator[None]:
    """Switch off what reads values: data-dependent routing, and the check for padding tokens."""
    config = model.config
    experts = None
    pad = getattr(config, "pad_token_id", None)
    try:
        config.pad_token_id = None
        if hasattr(model, "get_experts_implementation"):
            experts = model.get_experts_implementation()
            model.set_experts_implementation("batched_mm")
        yield
    finally:
        if experts is not None:
            model.set_experts_implementation(experts)
        config.pad_token_id = pad


def make_fit_for_meta(model: Any) -> None:
    """Do as `fit_for_meta` for good: a model on the meta device has no other use."""
    model.config.pad_token_id = None
    _set_experts(model, "batched_mm")


def make_fit_for_float64(model: Any) -> None:
    """Have experts computed one after the other: grouped matmuls have no kernel for float64."""
    _set_experts(model, "eager")


def _set_experts(model: Any, implementation: str) -> None:
    known = hasattr(model, "get_experts_implementation")
    if known and model.config._experts_implementation != implementation:
        model.set_experts_implementation(implementation)
