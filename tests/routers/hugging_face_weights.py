"""Weights to and from the names and shapes that Hugging Face transformers 5 gives them.

Whole decoders: Llama's (dense) and Mixtral's (experts). Feed-forward parts alone, for models that
differ elsewhere: OLMoE's, DeepSeek-V3's and Qwen-MoE's too. Reading also takes checkpoints, where each
expert has matrices of its own.

E experts, F hidden width, D model width.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    """The weights of a block's dense MLP or token-choice experts, as Hugging Face's module has them."""
    state = weights_of(feed_forward)
    return _renamed(state, _feed_forward_parts(state, ours=True))


def feed_forward_from_hugging_face(state: Mapping[str, Tensor]) -> State:
    """Weights for ``load_state_dict`` of a block's feed-forward part, from those of a LlamaMLP,
    MixtralSparseMoeBlock, OlmoeSparseMoeBlock, DeepseekV3MoE or Qwen2MoeSparseMoeBlock."""
    fused = _fused(dict(state))
    return _joined(fused, _feed_forward_parts(fused, ours=False))


def to_hugging_face(decoder: Decoder) -> State:
    """The weights of ``decoder`` for ``load_state_dict`` of a LlamaForCausalLM, or, where its MLPs are
    token-choice experts, a MixtralForCausalLM."""
    config, state = decoder.config, weights_of(decoder)
    converted = _renamed(state, _decoder_parts(state, config, ours=True))
    if config.tied_head:
        converted["lm_head.weight"] = converted["model.embed_tokens.weight"]
    return converted


def from_hugging_face(state: Mapping[str, Tensor], config: ModelConfig) -> State:
    """Weights for ``load_state_dict`` of a decoder of shape ``config``, from a LlamaForCausalLM's or a
    MixtralForCausalLM's."""
    # Old checkpoints also hold what follows from rope_base.
    theirs = {key: value for key, value in state.items() if not key.endswith("rotary_emb.inv_freq")}
    theirs = _fused(theirs)
    if config.tied_head and "lm_head.weight" in theirs:
        head = theirs.pop("lm_head.weight")
        assert torch.equal(head, theirs.get("model.embed_tokens.weight", head))
    return _joined(theirs, _decoder_parts(theirs, config, ours=False))


def _feed_forward_parts(names: Iterable[str], *, ours: bool) -> tuple[_Part, ...]:
    """The parts of a feed-forward module with ``names``, in our names or in theirs."""
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


def _renamed(state: State, parts: Iterable[_Part]) -> State:
    converted: State = {}
    for part in parts:
        converted |= part.split(state.pop(part.ours))
    assert not state
    return converted


def _joined(state: State, parts: Iterable[_Part]) -> State:
    converted = {part.ours: part.join([state.pop(name) for name in part.theirs]) for part in parts}
    assert not state
    return converted


def _fused(state: State) -> State:
    """``state`` with each layer's experts stacked; in checkpoints they stand one by one, Mixtral's under
    the names w1 (gate), w2 (down) and w3 (up)."""
    pattern = r"(.*experts\.)(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight"
    roles = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    fused: State = {}
    single: dict[str, dict[str, dict[int, Tensor]]] = {}
    for key, tensor in state.items():
        key = key.replace(".block_sparse_moe.", ".mlp.")
        found = re.fullmatch(pattern, key)
        if found is None:
            fused[key] = tensor
            continue
        prefix, number, role = found[1], int(found[2]), roles.get(found[3], found[3])
        single.setdefault(prefix, {}).setdefault(role, {})[number] = tensor
    for prefix, by_role in single.items():
        gate_E, up_E, down_E = (
            torch.stack([by_role[role][number] for number in range(len(by_role[role]))])
            for role in ("gate_proj", "up_proj", "down_proj")
        )
        fused[f"{prefix}gate_up_proj"] = torch.cat((gate_E, up_E), dim=1)
        fused[f"{prefix}down_proj"] = down_E
    return fused
