"""Weights to and from the names and shapes that Hugging Face transformers 5 gives them.

Whole decoders: Llama's (dense) and Mixtral's (experts). Feed-forward parts by themselves, for models
that differ elsewhere: OLMoE's, DeepSeek-V3's and Qwen-MoE's too. Reading also takes what lies in
checkpoints, where each expert has matrices of its own. Weights alone are converted: that both models do
the same with them is for the router's options to say, and for ``rope_base`` and ``norm_epsilon``.

E experts, F hidden width, D model width.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modbench.errors import UserError, known_names
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder

State = dict[str, Tensor]


@dataclass(frozen=True)
class _Part:
    """One of our tensors and those of Hugging Face that stacked, rows on rows, are it."""

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] | None = None  #: of each of theirs; None: equal parts

    def split(self, tensor: Tensor) -> State:
        parts = tensor.chunk(len(self.theirs)) if self.rows is None else tensor.split(self.rows)
        return {name: part.clone() for name, part in zip(self.theirs, parts, strict=True)}

    def join(self, tensors: list[Tensor]) -> Tensor:
        """
        Raises:
            UserError: they don't fit onto one another.
        """
        shapes = [tuple(tensor.shape) for tensor in tensors]
        rows = self.rows or (shapes[0][0],) * len(shapes)
        for name, shape, wanted in zip(self.theirs, shapes, rows, strict=True):
            if shape != (wanted, *shapes[0][1:]):
                raise UserError(
                    f"'{name}' is of shape {shape} and {(wanted, *shapes[0][1:])} would go with "
                    f"'{self.theirs[0]}'; give the weights of one model, and its shape"
                )
        return torch.cat(tensors)


def _mlp(ours: str, theirs: str) -> tuple[_Part, ...]:
    """SwiGLU: the gate's rows stand above the value's, which Hugging Face calls up."""
    return (
        _Part(f"{ours}up.weight", (f"{theirs}gate_proj.weight", f"{theirs}up_proj.weight")),
        _Part(f"{ours}down.weight", (f"{theirs}down_proj.weight",)),
    )


_ROUTED = (
    _Part("router.weight", ("gate.weight",)),
    _Part("bank.up", ("experts.gate_up_proj",)),
    _Part("bank.down", ("experts.down_proj",)),
)
#: Feed-forward parts, by what they must have; names relative to a block's feed-forward part.
_DENSE = _mlp("", "")
_BIAS = _Part("router.bias.value", ("gate.e_score_correction_bias",))
_SHARED = _mlp("shared.", "shared_experts.")  # DeepSeek's
_GATED = (
    *_mlp("shared.", "shared_expert."),
    _Part("shared_gate.weight", ("shared_expert_gate.weight",)),
)  # Qwen's


def weights_of(module: nn.Module) -> State:
    """The state of ``module`` without the counters of its noise, which have no counterpart."""
    return {name: tensor for name, tensor in module.state_dict().items() if "noise." not in name}


def load_weights(module: nn.Module, converted: State) -> None:
    module.load_state_dict({**module.state_dict(), **converted})
    assert converted.keys() == weights_of(module).keys()


def feed_forward_to_hugging_face(feed_forward: nn.Module) -> State:
    """The weights of a block's dense MLP or token-choice experts, as Hugging Face's module has them.

    Raises:
        UserError: it is no such part, or has a part that no such module has, or lacks one.
    """
    model, options = getattr(feed_forward, "model", None), getattr(feed_forward, "options", None)
    if not isinstance(model, ModelConfig):
        raise UserError(f"{type(feed_forward).__name__} is no feed-forward part; give a block's")
    state = weights_of(feed_forward)
    _only_swiglu(model)
    if getattr(options, "affinity", None) == "sigmoid" and _BIAS.ours not in state:
        raise UserError(
            "affinity is 'sigmoid' with bias_step 0, and DeepSeek-V3's part always has the bias; set "
            "bias_step above 0, such as 0.001"
        )
    return _renamed(state, _feed_forward_parts(state, ours=True), where="a feed-forward part")


def feed_forward_from_hugging_face(state: Mapping[str, Tensor], into: nn.Module | None = None) -> State:
    """Weights for ``load_state_dict`` of a block's feed-forward part, from those of a LlamaMLP,
    MixtralSparseMoeBlock, OlmoeSparseMoeBlock, DeepseekV3MoE or Qwen2MoeSparseMoeBlock.

    Give ``into``, the part that is to load them: then what doesn't fit its options is told, such as
    DeepSeek-V3's bias where ``bias_step`` is 0. Without it `load_state_dict` ends in torch's own words.

    Raises:
        UserError: a part is unknown or missing, or is none of ``into``, which is to load them.
    """
    fused = _fused(dict(state))
    converted = _joined(fused, _feed_forward_parts(fused, ours=False))
    return converted if into is None else _fitting(converted, into)


def to_hugging_face(decoder: Decoder) -> State:
    """The weights of ``decoder`` for ``load_state_dict`` of a LlamaForCausalLM, or, where its MLPs are
    token-choice experts, a MixtralForCausalLM.

    Raises:
        UserError: it is no decoder, or has a part that neither has.
    """
    if not isinstance(decoder, Decoder):
        raise UserError(f"{type(decoder).__name__} is no decoder; convert parts by themselves")
    config, state = decoder.config, weights_of(decoder)
    _only_swiglu(config)
    converted = _renamed(state, _decoder_parts(state, config, ours=True), where="Llama or Mixtral")
    if config.tied_head:
        converted["lm_head.weight"] = converted["model.embed_tokens.weight"]
    return converted


def from_hugging_face(
    state: Mapping[str, Tensor], config: ModelConfig, into: nn.Module | None = None
) -> State:
    """Weights for ``load_state_dict`` of a decoder of shape ``config``, from a LlamaForCausalLM's or a
    MixtralForCausalLM's. Give ``into``, the decoder that is to load them: then what doesn't fit its
    router's options is told, and not by torch.

    Raises:
        UserError: a part is unknown or missing, or its shape isn't the configuration's, or it is none
            of ``into``, which is to load them.
    """
    _only_swiglu(config)
    # What old checkpoints have besides follows from rope_base.
    theirs = {key: value for key, value in state.items() if not key.endswith("rotary_emb.inv_freq")}
    theirs = _fused(theirs)
    if config.tied_head and "lm_head.weight" in theirs:
        head = theirs.pop("lm_head.weight")
        if not torch.equal(head, theirs.get("model.embed_tokens.weight", head)):
            raise UserError(
                "tied_head is true and 'lm_head.weight' differs from 'model.embed_tokens.weight'; set "
                "tied_head = false"
            )
    converted = _joined(theirs, _decoder_parts(theirs, config, ours=False))
    for name, shape in _shapes(config).items():
        if name in converted and tuple(converted[name].shape) != shape:
            raise UserError(
                f"'{name}' comes to {tuple(converted[name].shape)} and the model's shape wants {shape}; "
                "give the ModelConfig that the weights are of"
            )
    return converted if into is None else _fitting(converted, into)


def _only_swiglu(model: ModelConfig) -> None:
    if model.mlp != "swiglu":
        raise UserError(f"model mlp is '{model.mlp}'; only 'swiglu' has a counterpart in Hugging Face")


def _feed_forward_parts(names: Iterable[str], *, ours: bool) -> tuple[_Part, ...]:
    """What a feed-forward part with such ``names`` consists of, in our names or in theirs."""
    names = set(names)

    def has(part: _Part) -> bool:
        return part.ours in names if ours else any(name in names for name in part.theirs)

    if not any(has(part) for part in _ROUTED):
        return _DENSE
    parts = list(_ROUTED)
    if has(_BIAS):
        parts.append(_BIAS)
    if any(has(part) for part in _GATED if part.ours == "shared_gate.weight" or not ours):
        parts.extend(_GATED)
    elif any(has(part) for part in _SHARED):
        parts.extend(_SHARED)
    return tuple(parts)


def _decoder_parts(names: Iterable[str], config: ModelConfig, *, ours: bool) -> tuple[_Part, ...]:
    parts = [
        _Part("embedding.weight", ("model.embed_tokens.weight",)),
        _Part("norm.weight", ("model.norm.weight",)),
    ]
    if not config.tied_head:
        parts.append(_Part("head.weight", ("lm_head.weight",)))
    rows = tuple(n * config.head_width for n in (config.heads, config.key_heads, config.key_heads))
    attention = tuple(f"self_attn.{name}_proj.weight" for name in "qkv")
    for layer in range(config.layers):
        mine, its = f"layers.{layer}.", f"model.layers.{layer}."
        inner = f"{mine}feed_forward." if ours else f"{its}mlp."
        within = [name.removeprefix(inner) for name in names if name.startswith(inner)]
        parts += [
            _Part(f"{mine}{part.ours}", tuple(f"{its}{name}" for name in part.theirs), part.rows)
            for part in (
                _Part("attention_norm.weight", ("input_layernorm.weight",)),
                _Part("attention.qkv.weight", attention, rows),
                _Part("attention.out.weight", ("self_attn.o_proj.weight",)),
                _Part("feed_forward_norm.weight", ("post_attention_layernorm.weight",)),
            )
        ]
        # No whole model has the rest of what experts may have, and attention as it is here.
        routed = set(_feed_forward_parts(within, ours=ours)) >= set(_ROUTED)
        parts += [
            _Part(f"{mine}feed_forward.{part.ours}", tuple(f"{its}mlp.{name}" for name in part.theirs))
            for part in (_ROUTED if routed else _DENSE)
        ]
    return tuple(parts)


def _renamed(state: State, parts: Iterable[_Part], where: str) -> State:
    _check_router(state)
    converted: State = {}
    for part in parts:
        if part.ours not in state:
            raise UserError(f"there is no '{part.ours}', which {where} of Hugging Face needs")
        converted |= part.split(state.pop(part.ours))
    if state:
        raise UserError(f"'{min(state)}' has no counterpart in {where} of Hugging Face")
    return converted


def _joined(state: State, parts: Iterable[_Part]) -> State:
    parts, converted = tuple(parts), {}
    for part in parts:
        missing = [name for name in part.theirs if name not in state]
        if missing:
            raise UserError(f"the weights lack '{missing[0]}'; give all of them")
        converted[part.ours] = part.join([state.pop(name) for name in part.theirs])
    if state:
        known = known_names(min(state), (name for part in parts for name in part.theirs))
        raise UserError(f"'{min(state)}' has no counterpart here; {known}")
    _check_router(converted)
    return converted


_OTHER_OPTIONS = "for they are of other options; give the router the weights'"


def _fitting(converted: State, into: nn.Module) -> State:
    """``converted``, which ``into`` can load."""
    own = weights_of(into)
    for name in sorted(own.keys() ^ converted.keys()):
        bias = name.endswith(_BIAS.ours)
        options = getattr(into, "options", getattr(into, "router", None))
        step = getattr(options, "bias_step", 0.0)
        if name in own:
            why = f"since its bias_step is {step:g}; set bias_step = 0" if bias else _OTHER_OPTIONS
            raise UserError(f"the weights have no '{name}', which the model has, {why}")
        why = (
            f"since its bias_step is {step:g}; set it above 0, such as 0.001" if bias else _OTHER_OPTIONS
        )
        raise UserError(f"the weights have '{name}' and the model has none, {why}")
    for name, tensor in own.items():
        if tensor.shape != converted[name].shape:
            raise UserError(
                f"'{name}' comes to {tuple(converted[name].shape)} and the model's is "
                f"{tuple(tensor.shape)}; give the router the options that the weights are of"
            )
    return converted


def _check_router(state: State) -> None:
    for name, router in state.items():
        bank = state.get(f"{name.removesuffix('router.weight')}bank.up")
        if name.endswith("router.weight") and bank is not None and len(router) != len(bank):
            raise UserError(f"'{name}' chooses among {len(router)} experts and there are {len(bank)}")


def _fused(state: State) -> State:
    """``state`` with each layer's experts stacked; in checkpoints they stand one by one, Mixtral's under
    the names w1 (gate), w2 (down) and w3 (up)."""
    pattern = r"(.*experts\.)(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight"
    roles = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    fused: State = {}
    single: dict[str, dict[str, dict[int, Tensor]]] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor) or not tensor.dim():
            kind = "a single number" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise UserError(f"'{key}' is {kind}; it must be a tensor of one dimension or more")
        key = key.replace(".block_sparse_moe.", ".mlp.")
        found = re.fullmatch(pattern, key)
        if found is None:
            fused[key] = tensor
            continue
        prefix, number, role = found[1], int(found[2]), roles.get(found[3], found[3])
        single.setdefault(prefix, {}).setdefault(role, {})[number] = tensor
    for prefix, by_role in single.items():
        experts = max(map(len, by_role.values()))
        for role in ("gate_proj", "up_proj", "down_proj"):
            for number in range(experts):
                if number not in by_role.get(role, {}):
                    raise UserError(
                        f"the weights lack '{prefix}{number}.{role}.weight'; give all of them"
                    )
                shape, wanted = tuple(by_role[role][number].shape), tuple(by_role["gate_proj"][0].shape)
                if shape != (wanted[::-1] if role == "down_proj" else wanted):
                    raise UserError(
                        f"'{prefix}{number}.{role}.weight' is of shape {shape} and the first gate_proj "
                        f"of {wanted}; give the weights of one model"
                    )
        gate_E, up_E, down_E = (
            torch.stack([by_role[role][number] for number in range(experts)])
            for role in ("gate_proj", "up_proj", "down_proj")
        )
        fused[f"{prefix}gate_up_proj"] = torch.cat((gate_E, up_E), dim=1)
        fused[f"{prefix}down_proj"] = down_E
    return fused


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What the configuration says of shapes; the experts' are the router's to say."""
    width, columns = config.width, (config.heads + 2 * config.key_heads) * config.head_width
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (config.vocabulary, width),
        "norm.weight": (width,),
        "head.weight": (config.vocabulary, width),
    }
    for layer in range(config.layers):
        shapes |= {
            f"layers.{layer}.attention_norm.weight": (width,),
            f"layers.{layer}.attention.qkv.weight": (columns, width),
            f"layers.{layer}.attention.out.weight": (width, width),
            f"layers.{layer}.feed_forward_norm.weight": (width,),
            f"layers.{layer}.feed_forward.up.weight": (2 * config.hidden, width),
            f"layers.{layer}.feed_forward.down.weight": (width, config.hidden),
        }
    return shapes
