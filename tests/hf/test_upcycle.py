"""Dense models of transformers whose MLPs become experts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import VOCABULARY, tiny, with_original
from torch import Tensor

import modbench
from modbench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of names that transformers deprecates

FAMILIES = ["llama", "olmo2", "phi3"]
ROUTERS: dict[str, dict[str, Any]] = {
    "token_choice": {},
    "expert_choice": {},
    "expert_threshold": {},
}


def tokens(sequences: int = 2, length: int = 16) -> Tensor:
    return torch.randint(2, VOCABULARY, (sequences, length))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("router", ["token_choice", "expert_choice"])
def test_experts_that_are_copies_give_the_dense_logits(family: str, router: str) -> None:
    original, model = with_original(family)
    modbench.upcycle(model, experts=4, router=router)
    receipt = modbench.receipt(original, model)
    assert receipt["largest_logit_difference"] <= 1e-6 * max(1.0, receipt["largest_logit"])
    if router == "token_choice":
        ids_BT = tokens()
        torch.testing.assert_close(model(ids_BT).logits, original(ids_BT).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("router", ROUTERS)
def test_upcycled_models_train_and_are_saved_with_their_state(router: str, tmp_path: Path) -> None:
    model, ids_BT = modbench.upcycle(tiny("llama"), 4, router), tokens()
    model.train()
    for _ in range(2):
        loss = model(ids_BT, labels=ids_BT).loss
        loss.backward()
    bank = model.model.layers[0].mlp.experts.bank
    assert bank.up.grad.abs().amax(dim=(1, 2)).min() > 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.eval().save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert {*state} == {*model.state_dict()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # Tensors of a file lie elsewhere in a cache line, and MKL rounds by that on some processors.
    torch.testing.assert_close(loaded(ids_BT).logits, model(ids_BT).logits, rtol=0, atol=1e-5)
    asked: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        model.generate(ids_BT, **asked), loaded.generate(ids_BT, use_cache=False, **asked)
    )


@pytest.mark.parametrize("router", ROUTERS)
def test_gradient_checkpointing_of_experts_gives_the_same_gradients(router: str) -> None:
    model, ids_BT = modbench.upcycle(tiny("llama"), 4, router).train(), tokens()
    gradients = []
    for checkpointed in (False, True):
        twin = copy.deepcopy(model)
        if checkpointed:
            twin.gradient_checkpointing_enable()
        twin(ids_BT, labels=ids_BT).loss.backward()
        gradients.append([p.grad for p in twin.parameters()] + list(twin.buffers()))
    for plain, again in zip(*gradients, strict=True):
        assert plain is None or torch.equal(plain, again)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_changes_no_training_loss(router: str, left: bool) -> None:
    model = modbench.upcycle(tiny("llama"), 4, router).train()
    ids_BT, sides = tokens(1, 9), (5, 0) if left else (0, 5)
    losses = [copy.deepcopy(model)(ids_BT, labels=ids_BT).loss]
    padded_BT = torch.nn.functional.pad(ids_BT, sides)
    mask_BT = torch.nn.functional.pad(torch.ones_like(ids_BT), sides)
    labels_BT = padded_BT.masked_fill(mask_BT == 0, -100)
    if left:
        labels_BT[:, 5] = -100  # padding does not predict the first token
    losses.append(model(padded_BT, attention_mask=mask_BT, labels=labels_BT).loss)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("mixtral", {}, "has experts already"),
        ("gemma2", {}, "Gemma2MLP has the activation"),
        ("llama", {"mlp_bias": True}, "LlamaMLP has biases"),
    ],
)
def test_an_mlp_of_another_kind_is_refused(family: str, options: dict[str, Any], words: str) -> None:
    model = tiny(family, **options)
    with pytest.raises(UserError, match=words):
        modbench.upcycle(model)
    assert type(model).__name__.startswith(family.capitalize())


@pytest.mark.parametrize(
    ("router", "options", "words"),
    [
        ("mod", {}, "router 'mod' is no ExpertRouter"),
        ("token_choice", {"renormalise": False}, "option renormalise is False"),
        ("token_choice", {"shared_experts": 1}, "option shared_experts is 1"),
        ("token_choice", {"expert_width": 8}, "option expert_width is 8"),
    ],
)
def test_a_router_with_which_copies_differ_is_refused(router: str, options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        modbench.upcycle(tiny("llama"), router=router, **options)
