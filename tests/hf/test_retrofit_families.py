"""Ten families of transformers with depth routing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, OTHERS, VOCABULARY, given, tiny, with_original
from torch import Tensor

import modbench
from modbench.hf.retrofit import decoding_report
from modbench.hf.retrofit.build import routers_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of names that transformers deprecates


#: Families for what layers do alike: a plain one, one with windows and soft caps, one with experts.
FEW = [
    name if name in ("llama", "gemma2", "mixtral") else pytest.param(name, marks=pytest.mark.full)
    for name in FAMILIES
]


def routed(family: str, router: str = "mod", **options: Any) -> Any:
    """A model whose router is far from its initial state; layer 0 is routed, too."""
    options = {"every": 2, "offset": 0, **options} if router.startswith("mod") else options
    model = modbench.retrofit(tiny(family), router, **options)
    with torch.no_grad():
        for part in routers_of(model):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def tokens(sequences: int = 2, length: int = 16) -> Tensor:
    return torch.randint(2, VOCABULARY, (sequences, length))


@torch.no_grad()
def step_by_step(model: Any, ids_BT: Tensor, first: int) -> tuple[Tensor, Any]:
    """The logits of a prompt of ``first`` tokens, then of chunks of up to three, and the cache."""
    cache = transformers.DynamicCache(config=model.config)
    logits, begin, end = [], 0, first
    while begin < ids_BT.shape[1]:
        logits.append(model(ids_BT[:, begin:end], **given(model, cache)).logits)
        begin, end = end, end + 1 + len(logits) % 3
    return torch.cat(logits, 1), cache


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_tokens_selected_the_logits_are_the_originals(family: str) -> None:
    original, model = with_original(family)
    modbench.retrofit(model, "mod", 2, offset=0)
    assert {*original.state_dict()} < {*model.state_dict()}
    receipt = modbench.receipt(original, model)
    assert receipt["largest_logit_difference"] == 0.0
    ids_BT = tokens()
    assert not torch.equal(original(ids_BT).logits, model(ids_BT).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_logits_are_the_uncached(family: str) -> None:
    model, ids_BT = routed(family), tokens()
    with torch.no_grad():
        logits_BTV = model(ids_BT).logits
    cached_BTV, cache = step_by_step(model, ids_BT, 5)
    assert (cached_BTV - logits_BTV).norm() <= 1e-6 * logits_BTV.norm()
    for layer in decoding_report(cache):
        assert layer.seen == 32
        assert 0 < layer.selected < 32


@pytest.mark.parametrize("family", FEW)
def test_generate_with_a_cache_is_generate_without(family: str) -> None:
    model, ids_BT = routed(family), tokens(length=5)
    asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    cached = model.generate(ids_BT, **asked)
    assert torch.equal(cached, model.generate(ids_BT, use_cache=False, **asked))
    beams = model.generate(ids_BT, num_beams=3, **asked)
    assert torch.equal(beams, model.generate(ids_BT, num_beams=3, use_cache=False, **asked))


@pytest.mark.parametrize("family", FEW)
def test_a_sequence_padded_on_the_left_is_what_it_is_alone(family: str) -> None:
    model = routed(family)
    short_BT, long_BT = tokens(1, 6), tokens(1, 13)
    padded_BT = torch.cat((torch.zeros(1, 7, dtype=torch.long), short_BT), 1)
    batch_BT = torch.cat((padded_BT, long_BT))
    mask_BT = torch.ones_like(batch_BT)
    mask_BT[0, :7] = 0
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits_BTV = model(batch_BT, attention_mask=mask_BT, position_ids=positions_BT).logits
        for row, alone_BT in ((0, short_BT), (1, long_BT)):
            alone_TV = model(alone_BT).logits[0]
            error = (logits_BTV[row, -len(alone_TV) :] - alone_TV).abs().max()
            assert error <= 2e-6 * alone_TV.abs().max()
    asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    both = model.generate(batch_BT, attention_mask=mask_BT, **asked)
    assert torch.equal(both[0, -12:], model.generate(short_BT, **asked)[0, -12:])
    assert torch.equal(both[1, -12:], model.generate(long_BT, **asked)[0, -12:])


@pytest.mark.parametrize("family", FEW)
def test_a_saved_model_is_loaded_exactly(family: str, tmp_path: Path) -> None:
    original, model = with_original(family)
    # As a stock checkpoint; Mixtral's has a tensor for each expert.
    original.save_pretrained(tmp_path / "stock")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    for each in (model, stock):
        modbench.retrofit(each, "mod:ema_threshold", every=2, seed=3)
        modbench.receipt(original, each)
        each.train()
        each(tokens())  # moves the threshold
        each.eval()
        each.save_pretrained(tmp_path / "out")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert type(loaded) is type(each)
        state = each.state_dict()
        assert {*loaded.state_dict()} == {*state}
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
        ids_BT = tokens()
        # Tensors of a file lie elsewhere in a cache line, and MKL rounds by that on some processors.
        torch.testing.assert_close(loaded(ids_BT).logits, each(ids_BT).logits, rtol=0, atol=1e-5)
        assert loaded.config.modbench["receipt"]["largest_logit_difference"] == 0.0


@pytest.mark.parametrize("family", FEW)
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    model, ids_BT = routed(family).train(), tokens()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids_BT, labels=ids_BT).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    plain, again = gradients
    assert plain["model.layers.0.depth_router.router.weight"].abs().max() > 0
    assert plain["model.layers.0.depth_router.predictor.up"].abs().max() > 0
    for name, gradient in plain.items():
        assert (gradient is None) == (again[name] is None)
        assert gradient is None or torch.equal(gradient, again[name]), name


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_decode_and_are_saved(family: str, tmp_path: Path) -> None:
    original, model = with_original(family)
    modbench.retrofit(model, "mod", every=2, offset=0, capacity=0.5)
    assert modbench.receipt(original, model)["largest_logit_difference"] == 0.0
    ids_BT = tokens(length=10)
    asked: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    cached = model.generate(ids_BT, **asked)
    assert torch.equal(cached, model.generate(ids_BT, use_cache=False, **asked))
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids_BT).logits, model(ids_BT).logits)
