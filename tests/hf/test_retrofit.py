"""Depth routing of a tiny Llama: every kind of router, attention and padding, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import VOCABULARY, cache_of, given, tiny
from torch import Tensor

import modbench
from modbench import FlopCounter
from modbench.errors import UserError
from modbench.hf.folder import load_folder
from modbench.hf.retrofit.build import routers_of
from modbench.routers.mod import MixtureOfDepths
from modbench.routing.registry import load_plugin

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of names that transformers deprecates

ROUTERS = [
    "mod",
    "mod:aux_bce",
    "mod:ema_threshold",
    "mod:gaussian",
    "mod:hash",
    "mod:stride",
    "threshold_skip",
]


def tokens(sequences: int = 2, length: int = 16) -> Tensor:
    return torch.randint(2, VOCABULARY, (sequences, length))


def routed(router: str, family: str = "llama", **more: Any) -> Any:
    options: dict[str, Any] = {} if router == "threshold_skip" else {"capacity": 0.5}
    model = modbench.retrofit(tiny(family, **more), router, **options)
    with torch.no_grad():
        for part in routers_of(model):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.train()
    model(tokens())  # moves thresholds and draws
    return model.eval()


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_decodes_as_it_reads(router: str) -> None:
    model, ids_BT = routed(router), tokens()
    with torch.no_grad():
        outputs = model(ids_BT[:, :5])
        logits = [outputs.logits]
        cache = cache_of(outputs)
        for place in range(5, 16):
            logits.append(model(ids_BT[:, place : place + 1], **given(model, cache)).logits)
        error = (torch.cat(logits, 1) - model(ids_BT).logits).abs().max()
    assert error <= 2e-6 * logits[0].abs().max()
    assert sum(layer.selected for layer in modbench.hf.retrofit.decoding_report(cache)) > 0


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_is_saved_with_its_state(router: str, tmp_path: Path) -> None:
    model, ids_BT = routed(router), tokens()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids_BT).logits, model(ids_BT).logits)
    for each in (loaded, model):
        each.train()
    assert torch.equal(loaded(ids_BT, labels=ids_BT).loss, model(ids_BT, labels=ids_BT).loss)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_eager_attention_computes_what_sdpa_does(family: str) -> None:
    ids_BT = tokens()
    logits = []
    for kind in ("sdpa", "eager"):
        model = routed("mod", family, attn_implementation=kind)
        with torch.no_grad():
            outputs = model(ids_BT[:, :10])
            later = model(ids_BT[:, 10:], **given(model, cache_of(outputs)))
        logits.append(torch.cat((outputs.logits, later.logits), 1))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("router", ROUTERS)
def test_padding_on_the_right_changes_nothing_in_training(router: str) -> None:
    model = modbench.retrofit(tiny("llama"), router).train()
    ids_BT = tokens(1, 9)
    losses = []
    for wide in (0, 5):
        twin = copy.deepcopy(model)
        padded_BT = torch.nn.functional.pad(ids_BT, (0, wide))
        mask_BT = torch.nn.functional.pad(torch.ones_like(ids_BT), (0, wide))
        labels_BT = padded_BT.masked_fill(mask_BT == 0, -100)
        losses.append(twin(padded_BT, attention_mask=mask_BT, labels=labels_BT).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)


def test_the_training_rule_selects_the_capacity_and_the_loss_has_the_auxiliary_losses() -> None:
    model = modbench.retrofit(tiny("llama"), "mod", capacity=0.125).train()
    ids_BT = tokens(3, 16)
    loss = model(ids_BT, labels=ids_BT).loss
    trace = model.routing
    assert trace.counts == {(1, "depth"): (2, 2, 2), (3, "depth"): (2, 2, 2)}
    assert {name for _, name in trace.losses} == {"causal_rule"}
    state = torch.get_rng_state()
    logits_BTV = model(ids_BT).logits
    plain = model.loss_function(logits_BTV, ids_BT, vocab_size=VOCABULARY)
    torch.set_rng_state(state)
    torch.testing.assert_close(loss, plain + trace.auxiliary_loss())
    torch.testing.assert_close(model(ids_BT, labels=ids_BT, return_dict=False)[0], loss)


UPCYCLED = ["token_choice", "expert_choice", "expert_threshold"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("router", [*ROUTERS, *UPCYCLED])
def test_a_sequence_of_padding_alone_changes_nothing(router: str, training: bool) -> None:
    if router == "mod:gaussian" and training:
        pytest.skip("draws scores for all sequences at once")
    model = modbench.upcycle(tiny("llama"), 4, router) if router in UPCYCLED else routed(router)
    twin = copy.deepcopy(model.train(training))
    ids_BT = tokens(3)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1] = 0
    mask_BT[2, :5] = 0
    labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
    with_it = model(ids_BT, attention_mask=mask_BT, labels=labels_BT)
    rows = [0, 2]
    without = twin(ids_BT[rows], attention_mask=mask_BT[rows], labels=labels_BT[rows])
    assert with_it.logits.isfinite().all()
    real_BT = mask_BT[rows].bool()
    torch.testing.assert_close(
        with_it.logits[rows][real_BT], without.logits[real_BT], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(with_it.loss, without.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    assert model(ids_BT, attention_mask=torch.zeros_like(mask_BT)).logits.isfinite().all()
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("router", ROUTERS)
def test_text_that_begins_after_a_chunk_of_padding_is_read_as_in_one_pass(router: str) -> None:
    model, ids_BT = routed(router), tokens()
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :5] = 0
    with torch.no_grad():
        whole = model(ids_BT, attention_mask=mask_BT).logits
        first = model(ids_BT[:, :4], attention_mask=mask_BT[:, :4])
        cache = given(model, cache_of(first))
        rest = model(ids_BT[:, 4:], attention_mask=mask_BT, **cache).logits
    torch.testing.assert_close(rest[0, 1:], whole[0, 5:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plugin", ["mlp_mod", "gumbel_skip"])
def test_a_plugin_trains_with_noise_of_its_own_and_is_saved(plugin: str, tmp_path: Path) -> None:
    load_plugin(Path(__file__).parents[2] / "examples" / f"{plugin}.py")
    model, ids_BT = modbench.retrofit(tiny("llama"), plugin, seed=5).train(), tokens()
    gradients = []
    for checkpointed in (False, True):
        twin = copy.deepcopy(model)
        if checkpointed:
            twin.gradient_checkpointing_enable()
        twin(ids_BT, labels=ids_BT).loss.backward()
        gradients.append([parameter.grad for parameter in twin.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is None or torch.equal(plain, again)
    twin.eval().save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids_BT).logits, twin(ids_BT).logits)


def test_half_precision_is_saved_and_loaded_exactly(tmp_path: Path) -> None:
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path / "stock")  # frequencies stay float32
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    model = modbench.retrofit(stock, "mod:ema_threshold", capacity=0.5)
    ids_BT = tokens()
    model.train()
    model(ids_BT)
    model.eval().save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded(ids_BT).logits, model(ids_BT).logits)
    value = loaded.model.layers[1].depth_router.threshold.value
    assert torch.equal(value, model.model.layers[1].depth_router.threshold.value)


def test_flops_are_counted_and_fall_with_the_capacity() -> None:
    ids_BT = tokens(2, 64)
    totals = {}
    for capacity in (1.0, 0.5, 0.125):
        model = modbench.retrofit(tiny("llama"), "mod", capacity=capacity, causal="aux_bce").train()
        with FlopCounter() as counter:
            model(ids_BT, labels=ids_BT).loss.backward()
        totals[capacity] = counter.total
    assert totals[1.0] > totals[0.5] > totals[0.125]
    # Projections, MLP and attention of the tokens that two layers skip, forward and backward.
    rows = 2 * 32 * 2
    per_token = 2 * (32 * (32 + 2 * 16 + 32) + 3 * 32 * 48)
    pairs = 2 * 2 * (64**2 - 32**2) * 2 * 2 * 32
    assert totals[1.0] - totals[0.5] == 3 * (rows * per_token + pairs)


def test_the_balance_loss_of_experts_is_of_the_tokens_that_a_layer_processes() -> None:
    model = routed("mod", "mixtral", output_router_logits=True).train()
    ids_BT = tokens()
    plain = model(ids_BT, labels=ids_BT)
    masked = model(ids_BT, labels=ids_BT, attention_mask=torch.ones_like(ids_BT))
    assert masked.aux_loss == plain.aux_loss > 0
    assert masked.loss == plain.loss
    padding_BT = torch.ones_like(ids_BT)
    padding_BT[0, :4] = 0
    with pytest.raises(UserError, match="output_router_logits asks for a balance loss"):
        model(ids_BT, labels=ids_BT, attention_mask=padding_BT)
    model.eval()
    assert model(ids_BT, attention_mask=padding_BT).aux_loss is None
    out_BT = model.generate(ids_BT, attention_mask=padding_BT, max_new_tokens=3, do_sample=False)
    assert out_BT.shape == (2, 19)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"cache_implementation": "static"}, "cache_implementation 'static' has no room"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens asks for assisted decoding"),
    ],
)
def test_generation_that_a_routed_layer_cannot_do_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        routed("mod").generate(tokens(), max_new_tokens=3, **asked)


def test_caches_of_other_kinds_are_refused() -> None:
    model = routed("mod")
    offloaded = transformers.DynamicCache(config=model.config)
    offloaded.offloading = True  # the constructor needs a GPU
    static = transformers.StaticCache(config=model.config, max_cache_len=32)
    for cache, words in [(static, "StaticCache with StaticLayer"), (offloaded, "is offloaded")]:
        with pytest.raises(UserError, match=words):
            model(tokens(), **given(model, cache))
    cache = cache_of(tiny("llama")(tokens()))
    with pytest.raises(UserError, match="begin with an empty DynamicCache"):
        model(tokens(), **given(model, cache))


def _other_class(family: str, kind: str, **more: Any) -> Any:
    config = transformers.AutoConfig.for_model(family, **more)
    return getattr(transformers, kind)(config)


_TINY_T5 = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": 50}


def _quantised() -> Any:
    model = tiny("llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: torch.nn.Linear(2, 2), "Linear is no model of transformers"),
        (
            lambda: _other_class("t5", "T5ForConditionalGeneration", **_TINY_T5),
            "T5ForConditionalGeneration is an encoder-decoder",
        ),
        (
            lambda: _other_class(
                "gpt2", "GPT2LMHeadModel", n_embd=16, n_layer=2, n_head=2, vocab_size=50
            ),
            "GPT2Block takes",
        ),
        (_quantised, "LlamaForCausalLM has quantised weights"),
        (lambda: tiny("llama").model, "LlamaModel has no head over the vocabulary"),
        (lambda: routed("mod"), "is retrofitted already"),
    ],
    ids=["no-model", "encoder-decoder", "gpt2", "quantised", "no-head", "twice"],
)
def test_a_model_that_cannot_be_retrofitted_is_named(model: Any, words: str) -> None:
    given = model()
    before = [type(part) for part in given.modules()]
    with pytest.raises(UserError, match=words) as raised:
        modbench.retrofit(given, "mod")
    assert "\n" not in str(raised.value)
    assert [type(part) for part in given.modules()] == before


@pytest.mark.parametrize(
    ("router", "options", "words"),
    [
        ("token_choice", {}, "router 'token_choice' is no DepthRouter"),
        ("mode_staged", {}, "router 'mode_staged' puts a feed-forward part"),
        ("mod", {"residual": "full"}, "multiplies the residual stream"),
        (MixtureOfDepths(), {"capacity": 0.5}, "options capacity are given with a router that is built"),
    ],
)
def test_a_router_that_cannot_be_used_is_named(router: Any, options: Any, words: str) -> None:
    model = tiny("llama")
    with pytest.raises(UserError, match=words):
        modbench.retrofit(model, router, **options)
    assert type(model) is transformers.LlamaForCausalLM
    assert model.config.model_type == "llama"


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name, said in (
        ("config.json", "has no safetensors"),
        ("model.gguf", "has model.gguf and no safetensors"),
        ("pytorch_model.bin", "weights pytorch_model.bin are pickled, which may run code"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=said):
            load_folder(tmp_path)
