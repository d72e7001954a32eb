"""Training of retrofitted models of transformers: loss and gradients of micro-batches, and copies."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCABULARY, tiny
from torch import Tensor

import modbench

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of names that transformers deprecates


def tokens(sequences: int = 2, length: int = 16) -> Tensor:
    return torch.randint(2, VOCABULARY, (sequences, length))


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "mod", {"auxiliary": 0.5}),
    ("llama", "token_choice", {"balance": 0.5, "z_loss": 0.5}),
    ("mixtral", "mod", {"auxiliary": 0.5}),
    ("jetmoe", "mod", {"auxiliary": 0.5}),
]
#: Families whose experts have a balance loss of transformers.
BALANCE: dict[str, dict[str, Any]] = {
    "mixtral": {"output_router_logits": True, "router_aux_loss_coef": 0.5},
    "jetmoe": {
        "output_router_logits": True,
        "aux_loss_coef": 0.5,
        "kv_channels": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 4,
    },
}


def in_training(family: str, router: str, options: dict[str, Any]) -> Any:
    route = modbench.upcycle if router == "token_choice" else modbench.retrofit
    return route(tiny(family, **BALANCE.get(family, {})), router=router, **options).train()


def accumulated(model: Any, ids_BT: Tensor, labels_BT: Tensor) -> tuple[float, float]:
    """Loss and weighted auxiliary losses of micro-batches of a sequence, whose gradients add up. The
    calls are those of transformers' Trainer."""
    items = (labels_BT[:, 1:] != -100).sum()
    loss = auxiliary = 0.0
    for ids, labels in zip(ids_BT.split(1), labels_BT.split(1), strict=True):
        part = model(ids, labels=labels, num_items_in_batch=items).loss
        part.backward()
        loss += part.item()
        weight = (labels[:, 1:] != -100).sum() / items
        auxiliary += (weight * model.routing.auxiliary_loss()).item()
    return loss, auxiliary


@pytest.mark.parametrize(
    ("router", "options"), [("mod", {"auxiliary": 0.5}), ("token_choice", {"balance": 0, "z_loss": 0.5})]
)
def test_micro_batches_give_the_loss_and_gradients_of_a_batch(
    router: str, options: dict[str, Any]
) -> None:
    """Of auxiliary losses that are means over tokens, and as many tokens in each micro-batch."""
    model, ids_BT = in_training("llama", router, options), tokens(4)
    twin = copy.deepcopy(model)
    whole = model(ids_BT, labels=ids_BT).loss
    whole.backward()
    assert whole.item() > model.routing.auxiliary_loss().item() > 0.1
    assert accumulated(twin, ids_BT, ids_BT)[0] == pytest.approx(whole.item(), rel=1e-5)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        if one.grad is None:
            assert other.grad is None
        else:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "router", "options"), CASES)
def test_auxiliary_losses_of_micro_batches_weigh_as_their_labels(
    family: str, router: str, options: dict[str, Any]
) -> None:
    model, ids_BT = in_training(family, router, options), tokens(4)
    labels_BT = ids_BT.clone()
    labels_BT[1, 3:] = -100
    loss, auxiliary = accumulated(model, ids_BT, labels_BT)
    with torch.no_grad():
        logits_BTV = torch.cat([model(ids).logits for ids in ids_BT.split(1)])
    plain = model.loss_function(logits_BTV, labels_BT, vocab_size=VOCABULARY).item()
    assert auxiliary > 0.1
    assert loss == pytest.approx(plain + auxiliary, rel=1e-5)


@pytest.mark.parametrize("router", ["mod", "token_choice"])
def test_a_model_is_copied_and_pickled(router: str, tmp_path: Path) -> None:
    model, ids_BT = in_training("llama", router, {}), tokens()
    expected = model.eval()(ids_BT).logits
    model.train()(ids_BT, labels=ids_BT)  # whose reports, with a gradient, the model keeps
    model.eval()
    buffer, file = io.BytesIO(), tmp_path / "model.pt"
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ]
    for twin in copies:
        assert torch.equal(twin(ids_BT).logits, expected)
        assert [type(part) for part in twin.modules()] == [type(part) for part in model.modules()]
        assert type(twin.config) is type(model.config)
    torch.save((model, ids_BT), file)
    code = (
        "import sys, torch; model, ids_BT = torch.load(sys.argv[1], weights_only=False); "
        "torch.save(model(ids_BT).logits, sys.argv[1]); print(type(model).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert done.stdout == "RetrofittedLlamaForCausalLM\n"
    # The weights lie elsewhere in the other process's memory, where some processors round otherwise.
    assert torch.allclose(torch.load(file), expected, rtol=1e-5, atol=1e-6)
