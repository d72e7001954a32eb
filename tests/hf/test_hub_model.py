"""A model of transformers as a `LanguageModel`: same logits, exact FLOPs, cached as uncached."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from modbench.audit import findings
from modbench.errors import UserError
from modbench.hf.config import stretched
from modbench.hf.model import HubModel
from modbench.hf.models import model_of
from modbench.hf.passes import cache_argument
from modbench.ledger import Workload
from modbench.model.context import Context
from modbench.model.generate import generate
from modbench.model.kv_cache import Cache
from modbench.model.shape import TRANSFORMERS, HubConfig, shape_json, shape_of
from modbench.train.compiled import eager
from modbench.train.config import TrainConfig
from modbench.train.counted import CountedSteps, flops_per_step
from modbench.train.optimizer import build_optimizer
from modbench.train.step import passes, training_step

SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
#: The ten families of the issue, and a mixture of windows, which no default config has.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 61,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 96,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    },
    "llama": SMALL,
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 8},
    "gemma": {**SMALL, "head_dim": 8},
    "phi3": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 4},
    "olmoe": {**SMALL, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**SMALL, **EXPERTS, "head_dim": 8},
    "deepseek_v3": {
        **SMALL,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "kv_lora_rank": 8,
        "q_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 1,
    },
    "qwen3-windows": {
        **SMALL,
        "model_type": "qwen3",
        "head_dim": 8,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


def shape(name: str) -> HubConfig:
    config = {"model_type": name, **CONFIGS[name]}
    return HubConfig(vocabulary=61, width=24, layers=2, config=config)


def built(name: str, seed: int = 0) -> HubModel:
    model = model_of(shape(name), TRANSFORMERS, {}, seed)
    assert isinstance(model, HubModel)
    return model.eval()


def without_closed_form(**keys: Any) -> HubModel:
    config = {**SMALL, **keys}
    model = model_of(HubConfig(vocabulary=61, width=24, layers=2, config=config), TRANSFORMERS, {})
    assert isinstance(model, HubModel)
    assert model.flops_source == "counted"
    return model


def stock(model: HubModel) -> Any:
    """The model as transformers builds it, with the same weights."""
    keys = {key: value for key, value in model.config.config.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(model.config.family, **keys)
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    theirs.load_state_dict(model.inner.state_dict())
    return theirs.eval()


def tokens(sequences: int, length: int) -> Tensor:
    return torch.randint(61, (sequences, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_and_losses_are_those_of_transformers(name: str) -> None:
    model = built(name)
    text_BT = tokens(2, 21)
    theirs_BTV = stock(model)(input_ids=text_BT).logits
    torch.testing.assert_close(model(text_BT, Context()), theirs_BTV, rtol=1e-6, atol=1e-6)
    losses_BT = model.losses(text_BT[:, :-1], text_BT[:, 1:], Context())
    loss = stock(model)(input_ids=text_BT, labels=text_BT).loss
    torch.testing.assert_close(losses_BT.mean(), loss, rtol=1e-5, atol=1e-5)
    rows_R, places_R = torch.tensor([0, 1]), torch.tensor([3, 20])
    at_RV = model.logits_at(text_BT, Context(), rows_R, places_R)
    torch.testing.assert_close(at_RV, theirs_BTV[rows_R, places_R], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_audit_passes(name: str) -> None:
    """Probes 1, 2, 3 and 9: causality, batch invariance, decoding with padded prompts, chunks and single
    tokens, and the ledger equal to the counter in training, scoring and decoding."""
    model = model_of(stretched(shape(name), 300), TRANSFORMERS, {})
    results = list(findings(model, shapes=((3, 19),), trained=(2, 16)))
    failed = [(finding.name, finding.figure) for finding in results if finding.failed]
    assert not failed
    assert [finding.probe for finding in results if finding.verdict == "passed"] == [1, 2, 3, 9]


def test_the_audit_passes_without_a_closed_form_and_with_learned_positions() -> None:
    sizes = {"hidden_size": 24, "word_embed_proj_dim": 24, "num_hidden_layers": 2, "vocab_size": 61}
    config = {"model_type": "opt", **sizes, "num_attention_heads": 4, "max_position_embeddings": 40}
    opt = HubConfig(vocabulary=61, width=24, layers=2, config=config)
    model = model_of(stretched(opt, 300), TRANSFORMERS, {})
    assert not [finding.figure for finding in findings(model, trained=(2, 16)) if finding.failed]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_their_own_cache_gives_the_logits_of_ours(name: str) -> None:
    model = built(name)
    theirs, text_BT = stock(model), tokens(2, 20)
    cache, own = Cache(2), None
    for first, last in ((0, 9), (9, 13), (13, 14), (14, 15)):
        part_BT = text_BT[:, first:last]
        options = {} if own is None else {_cache_name(theirs): own}
        out = theirs(input_ids=part_BT, use_cache=True, **options)
        own = getattr(out, "cache", None) or out.past_key_values
        ours_BTV = model(part_BT, Context(selection="causal", cache=cache))
        torch.testing.assert_close(ours_BTV, out.logits, rtol=1e-5, atol=1e-5)


def _cache_name(model: Any) -> str:
    return cache_argument(model.forward)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_step_costs_what_the_ledger_says_and_lowers_the_loss(name: str) -> None:
    train = TrainConfig(sequence=16, batch=2, learning_rate=1e-2, recompute=name in ("llama", "olmoe"))
    model = built(name).train()
    before = torch.get_rng_state()
    batch = tokens(2, 16), tokens(2, 17)[:, 1:].contiguous()
    counts = CountedSteps()
    load = Workload.uniform(2, 16, "train", checkpoint=train.recompute)
    counts.count(1, model, load, lambda: passes(eager(model), batch, torch.float32, train)[1])
    assert (counts.counted, counts.figure()) == (1, "")
    assert torch.equal(torch.get_rng_state(), before)
    optimizer = build_optimizer(model, train)
    losses = [training_step(model, optimizer, train, batch, torch.float32)[0] for _ in range(8)]
    assert losses[-1] < losses[0]
    assert flops_per_step(model, train) == model.ledger(load).total("model") > 0


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts_are_computed_as_asked_for(implementation: str) -> None:
    config = {"model_type": "mixtral", **CONFIGS["mixtral"]}
    asked = HubConfig(vocabulary=61, width=24, layers=2, config=config, experts=implementation)
    model = model_of(asked, TRANSFORMERS, {})
    assert isinstance(model, HubModel)
    assert model.inner.config._experts_implementation == implementation
    text_BT = tokens(2, 9)
    with torch.no_grad():
        same_BTV = model_of(shape("mixtral"), TRANSFORMERS, {})(text_BT, Context())
        torch.testing.assert_close(model(text_BT, Context()), same_BTV, rtol=1e-5, atol=1e-5)


def test_a_balance_loss_is_added_where_the_config_asks_for_it() -> None:
    config = {"model_type": "mixtral", **CONFIGS["mixtral"], "output_router_logits": True}
    model = model_of(HubConfig(vocabulary=61, width=24, layers=2, config=config), TRANSFORMERS, {})
    context = Context()
    model.loss(tokens(2, 8), tokens(2, 8), context)
    assert context.trace.auxiliary_loss() > 0
    results = list(findings(model, shapes=((3, 19),), trained=(2, 16), only=(3, 9)))
    assert [finding.verdict for finding in results] == ["passed"] * 2, [each.figure for each in results]


def test_text_is_generated_with_a_cache_as_without() -> None:
    model, prompts = built("qwen3-windows"), [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]
    assert generate(model, prompts, new=9, cache=Cache(2)) == generate(model, prompts, new=9)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "stablelm"},
        {"model_type": "gemma2", "head_dim": 8, "sliding_window": 7},
        {"model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 4, "sliding_window": 7},
    ],
    ids=lambda config: f"{config['model_type']}-{config.get('sliding_window')}",
)
def test_a_family_without_a_closed_form_is_counted(config: dict[str, Any]) -> None:
    model = without_closed_form(**config)
    assert built("llama").flops_source == "closed form"
    results = list(findings(model, shapes=((3, 19),), trained=(2, 16), only=(1, 3, 9)))
    assert [finding.verdict for finding in results] == ["passed"] * 3, [each.figure for each in results]


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "llama"])
def test_active_parameters_are_counted_as_the_closed_form_has_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(name)
    closed = model.parameter_count("active")
    assert (closed < model.parameter_count()) is (name != "llama")
    monkeypatch.setattr("modbench.hf.model.FAMILIES", {})
    assert model.parameter_count("active") == closed


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0}),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8}),
        ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_active_parameters_without_a_closed_form_are_counted(family: str, keys: dict[str, Any]) -> None:
    model = without_closed_form(model_type=family, **keys)
    experts = [part for part in model.modules() if type(part).__name__.endswith("Experts")]
    held = sum(weight.numel() for part in experts for weight in part.parameters())
    assert experts
    met = next(value for key, value in keys.items() if key in ("moe_k", "num_experts_per_tok"))
    assert model.parameter_count() - model.parameter_count("active") == held - held * met // 4


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("doge", {"is_moe": True, "num_experts": 4, "num_experts_per_tok": 2}),
        ("jetmoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 6}),
    ],
)
def test_active_parameters_that_can_not_be_seen_are_unknown(family: str, keys: dict[str, Any]) -> None:
    model = without_closed_form(model_type=family, **keys)
    assert model.parameter_count() > 0
    with pytest.raises(UserError, match=f"active parameters of a {family} are unknown"):
        model.parameter_count("active")


def test_a_shape_is_stored_with_its_config_and_not_its_folder() -> None:
    one = HubConfig(
        vocabulary=61, width=24, layers=2, config=shape("llama").config, folder="/a", weights="b"
    )
    stated = shape_json(one)
    assert "folder" not in stated
    assert shape_of("run: model", stated) == one
    assert one != one.random
    with pytest.raises(UserError, match="digest"):
        shape_of("run: model", {**stated, "config": {**stated["config"], "vocab_size": 62}})


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda scaling: str(scaling.get("type") or scaling["rope_type"]),
)
def test_a_config_is_not_changed_by_its_model(scaling: dict[str, Any]) -> None:
    """Else the key of a run would differ once it was trained."""
    config = {"model_type": "llama", **SMALL, "rope_scaling": scaling, "rope_theta": 10_000.0}
    shape = HubConfig(width=24, layers=2, vocabulary=61, config=copy.deepcopy(config))
    model_of(shape, TRANSFORMERS, {})
    assert shape.config == config
