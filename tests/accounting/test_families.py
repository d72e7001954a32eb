"""Closed forms of published families: by hand, against brute force, and against transformers' sizes."""

import inspect
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import transformers
from family_cases import CONFIGS, Config

from modbench.accounting.count import count
from modbench.errors import UserError
from modbench.hf import passes as hugging_face
from modbench.hf.families import (
    FAMILIES,
    defaults_taken,
    family_ledger,
    family_reading,
    ignored_keys,
    load_config,
)
from modbench.ledger import Phase, Workload


def plain(**changed: Any) -> Config:
    return {
        "model_type": "llama",
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        **changed,
    }


def latent(**changed: Any) -> Config:
    return {**CONFIGS["deepseek_v3"], **changed}


def test_a_dense_model_worked_out_by_hand() -> None:
    by_component = family_ledger(plain(), Workload.uniform(2, 3, "train")).by_component("full")
    qkv, out = 2 * 6 * 8 * (8 + 2 * 4), 2 * 6 * 8 * 8
    scores, mlp = 2 * (2 * 9) * 2 * (4 + 4), 2 * 6 * 8 * 12 * 3
    assert by_component == {
        "attention.qkv": 2 * 3 * qkv,
        "attention.out": 2 * 3 * out,
        "mlp": 2 * 3 * mlp,
        "attention.scores": 2 * 3 * scores,
        "head": 3 * 2 * 6 * 8 * 11,
    }


def test_the_model_needs_a_triangle_and_prefill_one_row_of_logits() -> None:
    forward = family_ledger(plain(), Workload.uniform(2, 3)).by_component("model")
    prefill = family_ledger(plain(), Workload.uniform(2, 3, "prefill")).by_component("model")
    assert forward["attention.scores"] == 2 * 2 * (2 * 6) * 2 * (4 + 4)
    assert (forward["head"], prefill["head"]) == (2 * 6 * 8 * 11, 2 * 2 * 8 * 11)
    assert {**forward, "head": 0} == {**prefill, "head": 0}


def test_a_token_pays_for_the_experts_it_chose_and_for_the_router() -> None:
    few, many = (
        family_ledger(
            plain(model_type="mixtral", num_local_experts=experts), Workload.uniform(1, 5)
        ).by_component()
        for experts in (4, 64)
    )
    assert few["experts"] == many["experts"] == 2 * 2 * 2 * 5 * 8 * 12 * 3
    assert (few["router"], many["router"]) == (2 * 2 * 5 * 8 * 4, 2 * 2 * 5 * 8 * 64)


def test_a_shared_expert_and_its_gate_are_paid_by_every_token() -> None:
    config = plain(
        model_type="qwen2_moe",
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=4,
        shared_expert_intermediate_size=20,
        decoder_sparse_step=2,
    )
    spent = family_ledger(config, Workload.uniform(1, 5)).by_component()
    assert spent["mlp"] == 2 * 5 * 8 * 12 * 3  # the first layer is dense
    assert spent["experts"] == 2 * 5 * 8 * (2 * 4 + 20) * 3
    assert spent["router"] == 2 * 5 * 8 * (6 + 1)


def test_latent_attention_expands_the_whole_cache_at_every_step() -> None:
    layers, rank, columns = 3, 16, 6 * (16 + 12)
    steps = [
        family_ledger(latent(), Workload.uniform(1, 1, "decode", past)).by_component()["attention.qkv"]
        for past in (0, 10)
    ]
    assert steps[1] - steps[0] == layers * 2 * 10 * rank * columns
    three = family_ledger(latent(), Workload.uniform(1, 3, "decode", 10)).total()
    each = [
        family_ledger(latent(), Workload.uniform(1, 1, "decode", past)).total() for past in (10, 11, 12)
    ]
    assert three == sum(each)


def seen(new: int, past: int, window: int) -> int:
    """Pairs by brute force."""
    return sum(
        query - window < key <= query
        for query, key in product(range(past, past + new), range(past + new))
    )


@pytest.mark.parametrize("phase", ["forward", "prefill", "decode"])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (9, 0), (4, 3), (6, 20)])
def test_a_window_is_all_that_a_token_sees_and_all_that_a_cache_keeps(
    phase: Phase, new: int, past: int
) -> None:
    config = plain(model_type="mistral", sliding_window=5)
    workload = Workload.uniform(3, new, phase, past)
    each = 3 * 2 * 2 * 2 * (4 + 4)  # three sequences, two layers, two heads
    pairs = {
        convention: family_ledger(config, workload).by_component(convention)["attention.scores"] // each
        for convention in ("model", "full")
    }
    assert pairs["model"] == seen(new, past, 5)
    kept = min(past, 4)
    assert pairs["full"] == (seen(new, past, 5) if phase == "decode" else new * (kept + new))


@pytest.mark.parametrize(("tokens", "reached"), [(600, False), (700, True), (701, True)])
def test_a_window_that_is_not_reached_executes_blocks_of_causal_attention(
    tokens: int, reached: bool
) -> None:
    config = plain(model_type="mistral", sliding_window=700)
    workload = Workload.uniform(2, tokens, "train")
    counted = count(config, (2, tokens), phase="train")
    ledger = family_ledger(config, workload)
    assert ledger.total("executed") == counted.executed
    unlimited = family_ledger(plain(), workload).by_component("executed")["attention.scores"]
    assert (ledger.by_component("executed")["attention.scores"] == unlimited) is not reached


def test_qwen2_windows_the_last_layers_and_qwen2_moe_every_other_of_the_first() -> None:
    def windowed(model_type: str) -> list[bool]:
        config = plain(
            model_type=model_type,
            num_hidden_layers=5,
            use_sliding_window=True,
            sliding_window=2,
            max_window_layers=3,
        )
        ledger = family_ledger(config, Workload.uniform(1, 9))
        scores = {key[0]: flops.model for key, flops in ledger if key[1] == "attention.scores"}
        return [scores[layer] < max(scores.values()) for layer in range(5)]

    assert windowed("qwen2") == [False, False, False, True, True]
    assert windowed("qwen2_moe") == [True, False, True, False, False]


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model_that_transformers_builds(name: str) -> None:
    assert family_reading(CONFIGS[name]).parameters == built_parameters(CONFIGS[name])


def built_parameters(config: Config) -> int:
    model = hugging_face.build(config, "meta")
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_config_may_leave_out_is_what_transformers_takes_for_it(name: str) -> None:
    known = inspect.signature(type(transformers.AutoConfig.for_model(name)).__init__).parameters
    keys = FAMILIES[name]["keys"]
    theirs = {key: known[key].default for key in keys if key in known}
    assert {key: keys[key] for key in theirs} == theirs
    assert set(keys) - set(theirs) <= {"head_dim"}  # an attribute where it is given
    names = type(transformers.AutoConfig.for_model(name)).attribute_map
    for other, key in FAMILIES[name].get("names", {}).items():
        assert key in keys
        assert (other, key) in names.items() or (key, other) in names.items()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_reading_holds_the_matrices_that_the_ledger_charges_a_token_for(name: str) -> None:
    reading = family_reading(CONFIGS[name])
    spent = family_ledger(CONFIGS[name], Workload.uniform(1, 1)).by_component("full")
    matrices = reading.attention_parameters + reading.feed_forward_parameters + reading.head_parameters
    matrices += reading.router_parameters
    assert 2 * matrices == sum(spent.values()) - spent["attention.scores"]
    assert spent.get("router", 0) == 2 * reading.router_parameters


def test_a_key_goes_by_any_of_its_names() -> None:
    theirs = {**CONFIGS["qwen3_moe"]}
    theirs["num_local_experts"] = theirs.pop("num_experts")
    assert family_reading(theirs) == family_reading(CONFIGS["qwen3_moe"])
    renamed = {"model_type": "gpt2", "hidden_size": 96, "num_hidden_layers": 2}
    assert family_reading(renamed) == family_reading({"model_type": "gpt2", "n_embd": 96, "n_layer": 2})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "bert"}, r"model_type 'bert' is no causal .*known: deepseek_v3, gemma, gpt2"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is no causal .*known: deepseek_v3"),
        ({}, "model_type None is no causal"),
        (plain(num_attention_heads=3), "hidden_size is 8; num_attention_heads, 3, must divide it"),
        (plain(hidden_size="8"), "config hidden_size is '8'; it should be a valid integer"),
        (plain(model_type="mixtral", num_experts_per_tok=9), "num_experts_per_tok is 9; there are 8"),
        (plain(model_type="olmoe", num_experts=4, num_local_experts=8), "gives 'num_experts' twice"),
    ],
)
def test_a_config_that_can_not_be_is_refused_in_a_sentence(config: Any, sentence: str) -> None:
    for use in (family_reading, lambda bad: family_ledger(bad, Workload.uniform(1, 2))):
        with pytest.raises(UserError, match=sentence) as refused:
            use(config)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["gemma3_text", "gemma2", "llama4", "qwen3_next", "ministral", "phi"])
def test_a_family_without_a_closed_form_is_not_taken_for_the_nearest(name: str) -> None:
    with pytest.raises(UserError, match=name) as refused:
        family_reading({"model_type": name})
    assert "did you mean" not in str(refused.value)


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("llama", {"is_causal": False}, "is_causal false"),
        ("mixtral", {"is_causal": None}, "is_causal null"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention true"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention true"),
        ("llama", {"attn_implementation": "eager"}, 'attn_implementation "eager"'),
        ("qwen2", {"_attn_implementation": "eager"}, '_attn_implementation "eager"'),
        ("llama", {"sliding_window": 5}, "sliding_window 5"),
        ("olmoe", {"attention_chunk_size": 5}, "attention_chunk_size 5"),
        ("deepseek_v3", {"sliding_window": 0}, "sliding_window 0"),
        ("llama", {"per_layer_config": {"0": {"num_key_value_heads": 1}}}, "per_layer_config"),
        ("qwen3", {"layer_types": [FULL, "linear_attention", FULL]}, "linear_attention"),
        ("qwen3", {"layer_types": [SLIDING] * 3}, "window of None"),
        ("qwen2_moe", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("llama", {"layer_types": [FULL, SLIDING, FULL]}, "sliding_attention"),
        ("gemma", {"layer_types": [SLIDING] * 3}, "sliding_attention"),
        ("mistral", {"layer_types": [FULL, SLIDING, FULL]}, "window of 17"),
        ("mixtral-window", {"layer_types": [FULL] * 3}, "window of 9"),
        ("llama", {"text_config": {"hidden_size": 8}}, "text_config holds hidden_size"),
        ("qwen3", {"llm_config": {"num_hidden_layers": 8}}, "llm_config holds num_hidden_layers"),
        ("gpt2", {"thinker_config": {"text_config": {"n_embd": 8}}}, "thinker_config.text_config holds"),
    ],
)
def test_what_a_closed_form_would_count_wrongly_is_refused(
    name: str, changed: Config, words: str
) -> None:
    config = {**CONFIGS[name], **changed}
    for use in (family_reading, lambda bad: count(bad, (1, 2))):
        with pytest.raises(UserError, match=re.escape(words)):
            use(config)


@pytest.mark.parametrize(
    ("name", "changed", "ignored"),
    [
        ("llama", {"num_key_value_head": 1}, "num_key_value_head"),
        (
            "gemma",
            {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0},
            "query_pre_attn_scalar",
        ),
        ("mistral", {"num_local_experts": 8}, "num_local_experts"),
        ("llama", {"n_embd": 64}, "n_embd"),  # which is GPT-2's name alone
        ("gpt2", {"intermediate_size": 64}, "intermediate_size"),
        ("qwen2_moe", {"num_local_experts": 64}, "num_local_experts"),
        ("qwen2", {"qkv_bias": False}, "qkv_bias"),
    ],
)
def test_ignored_keys_are_named_and_transformers_ignores_them_too(
    name: str, changed: Config, ignored: str
) -> None:
    config = {**CONFIGS[name], **changed}
    with pytest.warns(UserWarning, match=f"ignored: {ignored}"):
        reading = family_reading(config)
    assert ignored_keys(config) == [*changed]
    assert reading == family_reading(CONFIGS[name])
    with pytest.warns(UserWarning, match=ignored):
        assert built_parameters(config) == reading.parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_transformers_wrote_is_read_as_the_one_it_read(name: str) -> None:
    config = transformers.AutoConfig.for_model(**CONFIGS[name])
    for written in (config.to_dict(), config.to_diff_dict()):
        assert family_reading(written) == family_reading(CONFIGS[name])
        workload = Workload.uniform(2, 70)
        assert family_ledger(written, workload) == family_ledger(CONFIGS[name], workload)


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_of_every_config_are_not_called_ignored(name: str) -> None:
    config = transformers.AutoConfig.for_model(name)
    told = {**config.to_dict(), "torch_dtype": "bfloat16", "rope_theta": 1e5, "rope_scaling": None}
    told |= transformers.GenerationConfig._get_default_generation_params()
    assert ignored_keys(told) == []
    assert ignored_keys({**told, "use_sliding_window": False, "kv_lora_rank": None}) == []
    assert defaults_taken({"model_type": name}) == FAMILIES[name]["keys"]
    assert set(defaults_taken(told)) <= {"head_dim"}


def test_a_config_is_read_from_its_file_or_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(plain()))
    assert load_config(file) == load_config(str(tmp_path)) == plain()
    file.write_text("{")
    with pytest.raises(UserError, match=r"config .*config\.json can't be read .* give a model's config"):
        load_config(file)
    file.write_text("[1]")
    with pytest.raises(UserError, match="holds no JSON object"):
        load_config(file)
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "absent.json")
