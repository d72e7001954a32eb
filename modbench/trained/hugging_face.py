"""Trained models in the format of Hugging Face transformers: vanilla as Llama, with `qk_norm` as Qwen3,
token choice as Mixtral, depth routing, with or without experts, as a Llama or Qwen3 that
`modbench.hf.retrofit` routes.

B sequences, T tokens, V vocabulary.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.hf.config import PREFIX
from modbench.hf.folder import load_folder, load_tokenizer
from modbench.hf.passes import installed
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.language_model import LanguageModel
from modbench.model.mlp import MLP
from modbench.routing.build import RoutedDecoder
from modbench.routing.depth_router import DepthRouted, DepthScheme
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.registry import plugin_file
from modbench.routing.router import Router
from modbench.trained.load import Loaded

END_OF_TEXT = "<|endoftext|>"
#: The scheme that each of transformers' models implements.
_MODELS = {"vanilla": "llama", "token_choice": "mixtral"}
#: Options of token choice for which Mixtral has a single value, and the reason.
_OF_MIXTRAL: dict[str, tuple[Any, str]] = {
    "affinity": ("softmax", "its scores are a softmax"),
    "renormalise": (True, "its gates sum to 1"),
    "scaling": (1.0, "its gates sum to 1"),
    "groups": (1, "a token may choose any of its experts"),
    "shared_experts": (0, "it has no shared experts"),
    "bias_step": (0.0, "it has no bias for the choice of experts"),
}
#: Largest difference of a logit, relative to the largest logit if that is above 1. Two runs of the quick
#: suite differed by 5e-7 and 8e-7.
_TOLERANCE = 1e-5
_TEXT = f"Text, of bytes: é\t{END_OF_TEXT}\n"


def model_type(loaded: Loaded) -> str:
    """Return the ``model_type`` of transformers that computes what the model does under the causal rule.
    Raises UserError: there is none; the message names the reason."""
    otherwise = f"load it with modbench.load('{loaded.folder}'), or export it --to modbench"
    router, shape = _decoder(loaded, otherwise)
    name = router.name
    depth = isinstance(router, DepthScheme)
    if name not in _MODELS and not depth:
        raise UserError(
            f"router '{name}' of {loaded.label} has no counterpart in transformers, which has vanilla "
            "(as Llama), token_choice (as Mixtral) and depth routing (as Llama with "
            f"modbench.hf.retrofit); {otherwise}"
        )
    kind = _MODELS.get(name, "llama")
    theirs = kind.capitalize()
    if shape.qk_norm and kind == "mixtral":
        raise UserError(
            f"{loaded.label} normalises queries and keys (qk_norm), and {theirs} doesn't; {otherwise}"
        )
    if shape.qk_norm:
        kind = "qwen3"
    if shape.mlp != "swiglu":
        raise UserError(f"mlp of {loaded.label} is '{shape.mlp}', and {theirs}'s is swiglu; {otherwise}")
    for option, (value, reason) in _OF_MIXTRAL.items() if name == "token_choice" else ():
        actual = getattr(router, option)
        if actual != value:
            raise UserError(
                f"option {option} of {loaded.label} is {actual!r}, and Mixtral's is {value!r}: "
                f"{reason}; {otherwise}"
            )
    if not depth:
        return kind
    if plugin_file(name) is not None:
        raise UserError(
            f"router '{name}' of {loaded.label} is of a plugin file, which transformers can't load; "
            f"install it as a package, or {otherwise}"
        )
    for block in _blocks(loaded):
        if not isinstance(block.feed_forward, MLP | RoutedExperts):
            raise UserError(
                f"router '{name}' of {loaded.label} has a {type(block.feed_forward).__name__} in its "
                f"blocks, and a Llama has an MLP or experts; {otherwise}"
            )
    return f"{PREFIX}{kind}"


def write_hugging_face(loaded: Loaded, folder: Path) -> float:
    """Write config, weights and tokenizer into ``folder``, load them with transformers, and return the
    largest difference of a logit. Raises UserError: transformers is not installed, it has no such model,
    or what it loads computes something else."""
    kind = model_type(loaded)
    transformers = installed()
    if kind.startswith(PREFIX):
        import modbench.hf.retrofit  # noqa: F401
    with _no_progress_bars():
        config = transformers.AutoConfig.for_model(kind, **_config(loaded))
        with torch.device("meta"):
            theirs = transformers.AutoModelForCausalLM.from_config(config)
        theirs.load_state_dict(_weights(loaded.model), assign=True)
        theirs.tie_weights()
        theirs.save_pretrained(folder)
        _complete_config(folder / "config.json")
        _write_tokenizer(loaded, folder)
        return _difference(loaded, folder)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _decoder(loaded: Loaded, otherwise: str = "") -> tuple[Router, ModelConfig]:
    """Return router and shape. Raises UserError: the model is one of transformers."""
    model = loaded.model
    if not isinstance(model, RoutedDecoder):
        raise UserError(f"{loaded.label} is a model of transformers already; {otherwise}")
    return model.router, model.config


def _config(loaded: Loaded) -> dict[str, Any]:
    router, config = _decoder(loaded)
    end = loaded.tokenizer.end_of_text
    shape = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "max_position_embeddings": loaded.sequence,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.rope_base)},
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": end,  # end of text precedes each document
        "eos_token_id": end,
        "pad_token_id": None,
        "dtype": "float32",
    }
    if config.qk_norm:  # of Qwen3
        shape |= {"head_dim": config.head_width, "attention_bias": False, "use_sliding_window": False}
    if isinstance(router, DepthScheme):
        return shape | {"modbench": _routing(loaded)}
    if router.name == "vanilla":
        return shape
    bank: Any = loaded.model.layers[0].feed_forward.bank  # type: ignore[union-attr]
    return shape | {
        "intermediate_size": bank.width,
        "num_local_experts": bank.experts,
        "num_experts_per_tok": router.top_k,  # type: ignore[attr-defined]
        "sliding_window": None,
    }


def _routing(loaded: Loaded) -> dict[str, Any]:
    """Describe depth routing and experts as `modbench.hf.retrofit` does."""
    router, _ = _decoder(loaded)
    seed = loaded.run.seed
    described: dict[str, Any] = {
        "depth": {"name": router.name, "options": router.options(), "seed": seed}
    }
    banks = [block.feed_forward for block in _blocks(loaded)]
    experts = [number for number, bank in enumerate(banks) if isinstance(bank, RoutedExperts)]
    if experts:
        bank: Any = banks[experts[0]]
        scheme = bank.options
        described["experts"] = {
            "name": scheme.name,
            "options": scheme.options(),
            "seed": seed,
            "layers": experts,
        }
    return described


def _blocks(loaded: Loaded) -> list[Block]:
    """Return the block of each layer, routed or not."""
    layers: Any = loaded.model.layers
    return [layer.block if isinstance(layer, DepthRouted) else layer for layer in layers]


def _complete_config(path: Path) -> None:
    """Add to the config what transformers reads and does not write."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]  # as other programs read it
    widths = (config["hidden_size"], config["intermediate_size"])
    if config["model_type"] == "mixtral" and any(width % 8 for width in widths):
        # Grouped matmuls, its default, need rows of a multiple of 16 bytes.
        config["experts_implementation"] = "eager"
    path.write_text(json.dumps(config, indent=2) + "\n")


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    """The weights by the names of transformers, which keeps queries, keys and values in a matrix each,
    and gate and up, too."""
    config: Any = model.config  # of our decoder: `_decoder`
    ours: dict[str, Tensor] = {name: weight.detach() for name, weight in model.named_parameters()}
    rows = [heads * config.head_width for heads in (config.heads, config.key_heads, config.key_heads)]
    theirs = {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "model.norm.weight": ours["norm.weight"],
        "lm_head.weight": ours["embedding.weight" if config.tied_head else "head.weight"],
    }
    for number, layer in enumerate(model.layers):
        mine, its = f"layers.{number}", f"model.layers.{number}"
        if isinstance(layer, DepthRouted):
            theirs |= _state(layer, f"{its}.depth_router.", without="block.")
            mine += ".block"
        if model.scheme != "token_choice" and f"{mine}.feed_forward.bank.up" in ours:
            experts = model.get_submodule(f"{mine}.feed_forward")
            theirs |= _state(experts, f"{its}.mlp.experts.")
            ours = {name: weight for name, weight in ours.items() if f"{mine}.feed_forward." not in name}
        names = {
            "attention_norm.weight": "input_layernorm.weight",
            "attention.out.weight": "self_attn.o_proj.weight",
            "attention.q_norm.weight": "self_attn.q_norm.weight",
            "attention.k_norm.weight": "self_attn.k_norm.weight",
            "feed_forward_norm.weight": "post_attention_layernorm.weight",
            "feed_forward.down.weight": "mlp.down_proj.weight",
            "feed_forward.router.weight": "mlp.gate.weight",
            "feed_forward.bank.up": "mlp.experts.gate_up_proj",
            "feed_forward.bank.down": "mlp.experts.down_proj",
        }
        for name, theirs_name in names.items():
            if f"{mine}.{name}" in ours:
                theirs[f"{its}.{theirs_name}"] = ours[f"{mine}.{name}"]
        parts = ours[f"{mine}.attention.qkv.weight"].split(rows)
        for name, part in zip("qkv", parts, strict=True):
            theirs[f"{its}.self_attn.{name}_proj.weight"] = part
        if f"{mine}.feed_forward.up.weight" in ours:
            gate, up = ours[f"{mine}.feed_forward.up.weight"].chunk(2)
            theirs |= {f"{its}.mlp.gate_proj.weight": gate, f"{its}.mlp.up_proj.weight": up}
    return {name: weight.clone() for name, weight in theirs.items()}


def _state(part: nn.Module, prefix: str, without: str | None = None) -> dict[str, Tensor]:
    """Return parameters and buffers of ``part`` under ``prefix``, but for those of its part
    ``without``."""
    state = part.state_dict()
    return {f"{prefix}{n}": t for n, t in state.items() if without is None or not n.startswith(without)}


def _write_tokenizer(loaded: Loaded, folder: Path) -> None:
    from tokenizers import decoders

    engine = loaded.tokenizer.engine()
    engine.decoder = decoders.ByteLevel()
    end = loaded.tokenizer.end_token
    engine.post_processor = None  # modbench adds no token
    engine.add_special_tokens([end])
    engine.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        # The characters of a special token in a text are text, as in modbench.
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": loaded.sequence,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


@torch.no_grad()
def _difference(loaded: Loaded, folder: Path) -> float:
    """Return the largest difference of a logit between ``loaded`` and the model that transformers loads
    from ``folder``. Raises UserError: it is too large, or the tokenizers differ."""
    theirs = load_folder(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(loaded.sequence, 256))
    tokens_BT = torch.randint(loaded.model.config.vocabulary, shape, generator=generator)
    ours_BTV = loaded.model(tokens_BT, Context(selection="causal"))
    difference = (theirs(tokens_BT).logits - ours_BTV).abs().max().item()
    ids = load_tokenizer(folder)(_TEXT, verbose=False)["input_ids"]
    wrong = "token ids" if ids != loaded.tokenizer.encode(_TEXT) else ""
    if not difference <= _TOLERANCE * max(1.0, ours_BTV.abs().max().item()):
        wrong = f"logits (difference {difference:.1e})"
    if wrong:
        raise UserError(
            f"transformers {installed().__version__} computes other {wrong} for {loaded.label}; use "
            "another version, nothing was written"
        )
    return difference
