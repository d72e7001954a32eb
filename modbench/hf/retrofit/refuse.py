"""Checks of models before anything is changed: a message names the class and an alternative."""

import inspect
from typing import Any

from torch import nn

from modbench.errors import UserError
from modbench.hf.attention import WITHOUT_MASKS
from modbench.hf.cache import windows_of
from modbench.hf.passes import installed

#: Arguments that a decoder layer may take besides its hidden states. Any other one may hold a value per
#: token, which would not be gathered.
_ARGUMENTS = {
    "attention_mask",
    "position_ids",
    "position_embeddings",
    "cache",
    "past_key_values",
    "past_key_value",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_router_logits",
    "kwargs",
}
_WORKS = "models such as Llama, Qwen3, Mistral, OLMo2, Gemma2, Phi3, SmolLM3, Mixtral and OLMoE work"
#: Implementations of attention whose masks are made here.
ATTENTION = ("sdpa", "eager")


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the decoder layers of ``model``, a causal language model of transformers. Raise a
    `UserError` that names the class, and what works instead, if it can't be retrofitted."""
    transformers = installed()
    if not isinstance(model, transformers.PreTrainedModel):
        raise UserError(
            f"{type(model).__name__} is no model of transformers; give what "
            "AutoModelForCausalLM.from_pretrained returns"
        )
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{name} is an encoder-decoder; retrofit needs a causal language model: {_WORKS}"
        )
    if getattr(model.config, "modbench", None):
        raise UserError(
            f"{name} is retrofitted already; give the original model, as "
            "AutoModelForCausalLM.from_pretrained returns it"
        )
    refuse_unfit_weights(model)
    check_attention(model)
    if not hasattr(model, "lm_head") and model.get_output_embeddings() is None:
        raise UserError(
            f"{name} has no head over the vocabulary; give a causal language model: {_WORKS}"
        )
    layers = _layers_of(model)
    windows_of(model.config)
    for layer in layers:
        check_layer(layer)
    for part in (model, model.base_model):
        if "kwargs" not in inspect.signature(part.forward).parameters:
            raise UserError(
                f"{type(part).__name__}.forward takes no further keyword arguments, through which a "
                f"layer is told of padding; {_WORKS}"
            )
    return layers


def refuse_unfit_weights(model: Any) -> None:
    """Raise a `UserError` for quantised weights."""
    method = getattr(model.config, "quantization_config", None)
    quantised = method is not None or getattr(model, "hf_quantizer", None) is not None
    if quantised or not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise UserError(
            f"{type(model).__name__} has quantised weights, which can't be trained; load it with "
            "dtype='bfloat16' and no quantization_config"
        )


def check_attention(model: Any) -> str:
    """Return the implementation of attention. Raise a `UserError` for one whose mask is no tensor of
    pairs, such as flex attention."""
    kind = str(model.config._attn_implementation)
    if kind == WITHOUT_MASKS:  # of a row of a suite: SDPA
        return "sdpa"
    if kind not in ATTENTION:
        raise UserError(
            f"{type(model).__name__} runs attention as '{kind}', whose mask can't be made for selected "
            "tokens; load it with attn_implementation='sdpa' or 'eager'"
        )
    return kind


def check_layer(layer: nn.Module) -> None:
    """Raise a `UserError` unless ``layer`` maps hidden states to hidden states with arguments that are
    known; decided by the signature of its forward."""
    name = type(layer).__name__
    signature = inspect.signature(layer.forward)
    names = list(signature.parameters)
    if not names or names[0] != "hidden_states" or "position_embeddings" not in names:
        raise UserError(
            f"{name} takes ({', '.join(names)}), and retrofit needs (hidden_states, attention_mask, "
            f"position_embeddings, ...); {_WORKS}"
        )
    for other in names[1:]:
        if other not in _ARGUMENTS:
            raise UserError(
                f"{name} takes '{other}', which may hold a value for each token; retrofit does not know "
                f"it: {_WORKS}"
            )
    if "tuple" in str(signature.return_annotation).lower() and not _returns_hidden_states(layer):
        raise UserError(f"{name} returns a tuple, and retrofit needs a tensor; {_WORKS}")


def _returns_hidden_states(layer: nn.Module) -> bool:
    """Return True if the forward of ``layer`` ends with ``return hidden_states``. The annotation of
    several families is that of an older version."""
    try:
        source = inspect.getsource(type(layer).forward)
    except (OSError, TypeError):
        return False
    returned = [line.strip() for line in source.splitlines() if line.strip().startswith("return")]
    return bool(returned) and set(returned) == {"return hidden_states"}


def _layers_of(model: Any) -> nn.ModuleList:
    number = model.config.num_hidden_layers
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        lists = [
            part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == number
        ]
        if not lists:
            raise UserError(f"{type(model).__name__} has no list of {number} layers; {_WORKS}")
        layers = lists[0]
    return layers
