"""The profiled FLOPs of a model equal its closed form, to the integer, in each direction under
each convention; and profiling leaves no trace.

B sequences, T tokens, V vocabulary.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_cases import CONFIGS, PUBLISHED, Config
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from modbench.accounting.count import Counted, count
from modbench.counting.counter import FlopCounter
from modbench.errors import UserError
from modbench.hf import passes as hugging_face
from modbench.hf.families import family_ledger
from modbench.ledger import CONVENTIONS, Ledger, Phase, Workload
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

#: One of each family, and those of its options that change a formula.
FEW = {
    "llama",
    "qwen2-window",
    "qwen3-layer-types",
    "gemma",
    "phi3-window",
    "phi3-head-dim",
    "gpt2",
    "mixtral-window",
}
FEW |= {"olmoe", "qwen2_moe", "qwen3_moe-window", "deepseek_v3"}
#: (phase, sequences, new tokens, cached tokens)
LOADS: list[tuple[Phase, int, int, int]] = [
    ("forward", 3, 63, 0),
    ("train", 3, 63, 0),
    ("prefill", 3, 63, 0),
    ("decode", 3, 1, 0),
    ("decode", 2, 3, 15),
    ("decode", 2, 1, 62),
    ("forward", 2, 7, 20),
    ("prefill", 2, 5, 3),
]


def by_direction(ledger: Ledger) -> dict:
    return {
        (convention, direction): ledger.total(convention, direction)
        for convention in CONVENTIONS
        for direction in ("forward", "backward", "recompute")
    }


def assert_same(counted: Counted, closed: Ledger) -> None:
    assert by_direction(counted.ledger) == by_direction(closed)
    assert closed.total("full") == counted.total > 0
    assert closed.total("model") == counted.total_model
    assert closed.total("executed") == counted.executed


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def small(name: str = "llama", device: str = "cpu") -> Any:
    return hugging_face.build(CONFIGS[name], device)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.full), "meta"])
@pytest.mark.parametrize(
    "name",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.full) for name in CONFIGS],
)
def test_the_closed_form_is_what_the_model_runs(name: str, device: str) -> None:
    model = small(name, device)
    for phase, sequences, tokens, past in LOADS:
        counted = count(model, (sequences, tokens), phase=phase, past=past)
        assert_same(
            counted, family_ledger(CONFIGS[name], Workload.uniform(sequences, tokens, phase, past))
        )


@pytest.mark.parametrize(
    "name", ["Mixtral-8x7B", *(pytest.param(name, marks=pytest.mark.full) for name in PUBLISHED)]
)
def test_published_sizes_are_counted_on_meta(name: str) -> None:
    for phase, tokens, past in [("train", 1000, 0), ("decode", 1, 1000)]:
        counted = count(PUBLISHED[name], (2, tokens), phase=phase, past=past)  # type: ignore[arg-type]
        workload = Workload.uniform(2, tokens, phase, past)  # type: ignore[arg-type]
        assert_same(counted, family_ledger(PUBLISHED[name], workload))


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_experts_cost_the_same_however_they_are_run(implementation: str) -> None:
    model = small("mixtral")
    model.set_experts_implementation(implementation)
    assert_same(
        count(model, (3, 17), phase="train"),
        family_ledger(CONFIGS["mixtral"], Workload.uniform(3, 17, "train")),
    )


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """A random small config of a random family."""

    def size(most: int) -> int:
        return draw(st.integers(1, most))

    family = draw(st.sampled_from(["llama", "qwen3", "mixtral", "olmoe", "qwen2_moe", "deepseek_v3"]))
    groups, head = size(3), 2 * size(8)
    heads = groups * size(3)
    config = {
        "model_type": family,
        "vocab_size": 1 + size(200),
        "hidden_size": heads * head,
        "intermediate_size": size(90),
        "num_hidden_layers": size(3),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": draw(st.booleans()),
    }
    experts = size(6)
    if family == "qwen3":
        config |= {"head_dim": 2 * size(8), "use_sliding_window": draw(st.booleans())}
        config |= {"sliding_window": size(20), "max_window_layers": draw(st.integers(0, 3))}
    if family == "mixtral":
        config |= {"num_local_experts": experts, "sliding_window": draw(st.none() | st.integers(1, 20))}
    if family in ("olmoe", "qwen2_moe"):
        config |= {"num_experts": experts}
    if family == "qwen2_moe":
        config |= {"moe_intermediate_size": size(20), "shared_expert_intermediate_size": size(20)}
        config |= {"decoder_sparse_step": size(3), "mlp_only_layers": draw(st.lists(st.integers(0, 2)))}
    if family == "deepseek_v3":
        grouped = draw(st.integers(1, 3))
        experts = grouped * draw(st.integers(2, 3))
        config |= {"num_key_value_heads": heads, "n_routed_experts": experts, "n_group": grouped}
        config |= {"topk_group": draw(st.integers(1, grouped)), "moe_intermediate_size": size(20)}
        config |= {"n_shared_experts": size(2), "first_k_dense_replace": draw(st.integers(0, 3))}
        config |= {"q_lora_rank": draw(st.none() | st.integers(1, 20)), "kv_lora_rank": size(20)}
        config |= {"qk_nope_head_dim": size(9), "qk_rope_head_dim": 2 * size(5), "v_head_dim": size(9)}
    if family not in ("llama", "qwen3"):
        config |= {"num_experts_per_tok": draw(st.integers(1, experts))}
    return config


@settings(
    max_examples=12,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    config=configs(),
    phase=st.sampled_from(["forward", "train", "prefill", "decode"]),
    sequences=st.integers(1, 3),
    tokens=st.integers(1, 24),
    past=st.integers(0, 24),
)
def test_any_config_is_counted_as_its_closed_form_says(
    config: Config, phase: Phase, sequences: int, tokens: int, past: int
) -> None:
    past, tokens = 0 if phase == "train" else past, min(tokens, 3) if phase == "decode" else tokens
    assume(tokens * sequences > 0)
    counted = count(config, (sequences, tokens), phase=phase, past=past)
    assert_same(counted, family_ledger(config, Workload.uniform(sequences, tokens, phase, past)))


@pytest.mark.parametrize(
    "name", ["llama", "gemma", "phi3", "mistral", "mixtral-window", "phi3-window", "qwen3_moe-window"]
)
def test_kinds_of_layers_that_a_family_does_not_read_change_nothing(name: str) -> None:
    kind = "sliding_attention" if CONFIGS[name].get("sliding_window") else "full_attention"
    for kinds in ([kind] * 3, None):
        config = {**CONFIGS[name], "layer_types": kinds}
        for phase, sequences, tokens, past in LOADS:
            workload = Workload.uniform(sequences, tokens, phase, past)
            counted = count(config, (sequences, tokens), phase=phase, past=past)
            assert_same(counted, family_ledger(CONFIGS[name], workload))
            assert family_ledger(config, workload) == family_ledger(CONFIGS[name], workload)


def test_a_window_that_a_model_does_not_read_is_not_counted() -> None:
    """Granite attends to all earlier tokens, whatever its config says; GPT-NeoX as well."""
    keys = {
        key: value for key, value in CONFIGS["llama"].items() if key not in ("model_type", "head_dim")
    }
    for name in ("granite", "gpt_neox"):
        config = {"model_type": name, **keys}
        with pytest.warns(UserWarning, match=r"has no .*sliding_window, and may ignore it"):
            windowed = hugging_face.build({**config, "sliding_window": 5}, "meta")
        assert windowed.config.sliding_window == 5
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GPT-NeoX has no groups of heads
            assert count(windowed, (2, 9), phase="train") == count(config, (2, 9), phase="train")


def test_what_transformers_can_not_run_is_refused_in_a_sentence() -> None:
    config = {**CONFIGS["qwen3"], "model_type": "smollm3", "use_sliding_window": False}
    config |= {"layer_types": ["sliding_attention"] * 3}
    for phase in ("forward", "decode"):
        with pytest.raises(UserError, match="SmolLM3ForCausalLM can't run"):
            count(config, (2, 9), phase=phase)  # type: ignore[arg-type]


def test_a_config_comes_as_a_dict_a_path_or_a_config_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["qwen3"]))
    given_dict = count(CONFIGS["qwen3"], (2, 9))
    assert count(tmp_path, (2, 9)) == count(str(tmp_path / "config.json"), (2, 9)) == given_dict
    keys = {key: value for key, value in CONFIGS["qwen3"].items() if key != "model_type"}
    config = transformers.AutoConfig.for_model("qwen3", **keys)
    before = dict(vars(config))
    assert count(config, (2, 9)) == given_dict
    assert vars(config) == before
    assert (given_dict.tokens, given_dict.phase) == (18, "forward")
    assert given_dict.per_token == given_dict.total / 18


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("phase", ["forward", "train", "prefill", "decode"])
def test_counting_leaves_no_trace(phase: Phase, device: str) -> None:
    model = small("mixtral", device)
    model.config.pad_token_id = 0
    model.train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    told = [
        lambda: [module.training for module in model.modules()],
        lambda: [parameter.requires_grad for parameter in model.parameters()],
        lambda: [id(parameter.grad) for parameter in model.parameters()],
        lambda: [len(module._forward_hooks) for module in model.modules()],
        lambda: [len(module._forward_pre_hooks) for module in model.modules()],
        lambda: [(name, id(buffer), buffer._version >= 0) for name, buffer in model.named_buffers()],
        model.config.to_dict,
        model.get_experts_implementation,
        lambda: torch.get_rng_state().tolist(),
        torch.is_grad_enabled,
    ]
    before = [tell() for tell in told]
    values = {} if device == "meta" else {key: v.clone() for key, v in model.state_dict().items()}
    count(model, (2, 5), phase=phase)
    assert [tell() for tell in told] == before
    if device == "cpu":
        assert torch.equal(first.grad, torch.ones_like(first))
        assert all(torch.equal(v, values[key]) for key, v in model.state_dict().items())


def test_a_count_that_fails_leaves_no_trace_either() -> None:
    model = small("gpt2").train()
    with pytest.raises(UserError, match=r"GPT2LMHeadModel can't run phase 'forward' on these inputs"):
        count(model, (1, 200))  # positions end at 128
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert count(model, (1, 9)).total == family_ledger(CONFIGS["gpt2"], Workload.uniform(1, 9)).total(
        "full"
    )


def test_frozen_parameters_cost_no_gradient() -> None:
    model = small()
    everything = count(model, (2, 9), phase="train")
    closed = family_ledger(CONFIGS["llama"], Workload.uniform(2, 9, "train"))
    model.model.embed_tokens.weight.requires_grad_(False)  # which is the head's, too
    model.model.layers[0].requires_grad_(False)
    frozen = count(model, (2, 9), phase="train")
    head = closed.entries[-1, "head", "forward"]
    first = sum(f.full for (layer, _, to), f in closed if layer == 0 and to == "backward")
    assert everything.total - frozen.total == first + head.full
    model.requires_grad_(False)
    with pytest.raises(UserError, match="no loss with a gradient; phase 'train' needs one parameter"):
        count(model, (2, 9), phase="train")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_checkpointing_is_executed_and_not_needed(device: str) -> None:
    model = small(device=device).eval()
    usual = count(model, (2, 9), phase="train")
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name in later versions
    (enable or model.gradient_checkpointing_enable)()
    again = count(model, (2, 9), phase="train")
    assert (again.total, again.total_model) == (usual.total, usual.total_model)
    closed = family_ledger(CONFIGS["llama"], Workload.uniform(2, 9, "train"))
    body = sum(f.executed for (layer, _, to), f in closed if layer >= 0 and to == "forward")
    # Of each layer all but its last matmul is run again, whose result the backward pass doesn't need.
    last = 3 * 2 * (2 * 9) * 80 * 48
    assert again.executed == usual.executed + body - last


def test_a_model_that_meta_can_not_run_is_counted_on_the_cpu() -> None:
    config = {**CONFIGS["mixtral"], "model_type": "minimax"}
    assert count(hugging_face.build(config, "cpu"), (2, 9)).total > 0
    with pytest.raises(UserError, match=r"MiniMaxForCausalLM can't run .* meta device .* on a CPU"):
        count(config, (2, 9))


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5_moe", "olmo_hybrid"])
def test_the_gated_delta_rule_is_counted(name: str) -> None:
    """In 3 of 4 layers, 4 heads of 8 solve for two chunks of 64 tokens, twice; backward as often."""
    config = {key: value for key, value in CONFIGS["qwen3_moe"].items() if key != "model_type"}
    config |= {"num_hidden_layers": 4, "shared_expert_intermediate_size": 24}
    config |= {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
    config |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    config |= {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    keys = {"text_config": config} if name == "qwen3_5_moe" else config
    if name == "olmo_hybrid":
        keys = {key: value for key, value in config.items() if "expert" not in key and "moe" not in key}
        keys.pop("head_dim")
    model = hugging_face.build({"model_type": name, **keys}, "cpu")
    tokens_BT = torch.randint(101, (2, 70))
    with FlopCounter() as counter:
        loss = model(input_ids=tokens_BT, labels=tokens_BT).loss
        forward = counter.by_op["aten::linalg_solve_triangular"]
        loss.backward()
    assert forward == 3 * (2 * 4 * 2) * 2 * 64 * 64 * 8
    assert counter.by_op["aten::linalg_solve_triangular"] == 2 * forward
    for phase, tokens, past in [("train", 70, 0), ("prefill", 70, 0), ("decode", 2, 5)]:
        on_cpu = count(model, (2, tokens), phase=phase, past=past)  # type: ignore[arg-type]
        meta = count({"model_type": name, **keys}, (2, tokens), phase=phase, past=past)  # type: ignore[arg-type]
        assert meta == on_cpu


def test_all_experts_of_llama4_process_all_tokens() -> None:
    """As docs/counting.md says, with the factors of Scout and Maverick at 2,048 tokens."""
    sizes = {"vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192, "head_dim": 128}
    sizes |= {"intermediate_size_mlp": 16384, "num_attention_heads": 40, "num_key_value_heads": 8}
    for experts, every, factor in [(16, 1, 6.4), (128, 2, 24)]:
        keys = {**sizes, "num_hidden_layers": 48, "interleave_moe_layer_step": every}
        config = {"model_type": "llama4_text", **keys, "num_local_experts": experts}
        total = count(config, (1, 2048)).total_model
        others = 48 // every * (experts - 1) * 2 * 2048 * 3 * 5120 * 8192
        assert round(total / (total - others), 1 if every == 1 else None) == factor


def built(kind: str, **options: Any) -> Any:
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=80
    )
    with torch.device("meta"):
        return getattr(transformers, options["of"]).from_config(config)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"model_type": "t5"}, "model_type 't5' is no causal .* a closed form: deepseek_v3, gemma"),
        (torch.nn.Linear(2, 2), "Linear can't be counted; give a causal language model"),
        (lambda: built("bert", of="AutoModelForMaskedLM"), "BertForMaskedLM is no causal"),
    ],
)
def test_what_is_no_causal_language_model_is_refused(model: Any, sentence: str) -> None:
    if callable(model) and not isinstance(model, torch.nn.Module):
        model = model()
    with pytest.raises(UserError, match=sentence):
        count(model, (2, 9))


SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


@pytest.mark.parametrize("phase", ["forward", "train"])
@pytest.mark.parametrize("scheme", ["vanilla", "mod"])
def test_decoders_of_our_own_are_counted_too(scheme: str, phase: Phase) -> None:
    decoder = build_model(SHAPE, build_router(scheme))
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    counted = count(decoder, (2, 63), phase=phase)
    assert_same(counted, decoder.ledger(Workload.uniform(2, 63, phase)))
    assert all(torch.equal(value, before[key]) for key, value in decoder.state_dict().items())
    assert all(parameter.grad is None for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("phase", "past"), [("prefill", 0), ("prefill", 21), ("forward", 21), ("decode", 0), ("decode", 21)]
)
@pytest.mark.parametrize("scheme", ["mod", "mode_staged"])
def test_decoders_of_our_own_are_counted_with_a_cache(scheme: str, phase: Phase, past: int) -> None:
    # On the meta device routing is nominal; the mask of a chunk has no values there.
    decoder = build_model(SHAPE, build_router(scheme)).to("meta")
    counted = count(decoder, (2, 11), phase=phase, past=past)
    ledger = decoder.ledger(Workload.uniform(2, 11, phase, past))
    assert counted.total == ledger.total("full")
    assert counted.executed == ledger.total("executed")
    if phase == "decode" or not past:
        assert_same(counted, ledger)
