"""What a forward pass can't be given, told in one sentence, and what its layers share."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.model.block import Attention
from modbench.model.config import ModelConfig
from modbench.model.context import Context, Trace
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_class, router_names

SHAPE = ModelConfig(vocabulary=61, width=16, layers=4, heads=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "caussal"}, "selection 'caussal' is not known; did you mean 'causal'"),
        ({"logits": "lats"}, "logits 'lats' is not known; did you mean 'last'"),
        ({"lengths_B": [3, 3]}, r"lengths_B is \[3, 3\]; it must be a tensor, or None"),
        ({"lengths_B": torch.tensor([3.0, 2.0])}, r"shape \(2,\) and torch.float32; it must be \(B,\)"),
        ({"lengths_B": torch.tensor([True])}, "and torch.bool; it must be"),
        ({"lengths_B": torch.tensor([[3], [3]])}, r"lengths_B is of shape \(2, 1\) and torch.int64"),
    ],
)
def test_a_context_that_can_not_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Context(**options)


@pytest.mark.parametrize("selection", ["topk", "causal"])
@pytest.mark.parametrize("lengths", [[3], [3, 3, 3], [3, 5], [0, 3], [0, 0], [-1, 3]], ids=str)
@pytest.mark.parametrize("name", router_names())
def test_lengths_that_are_none_of_the_tokens_move_nothing(
    name: str, lengths: list[int], selection: Any
) -> None:
    model = build_model(SHAPE, build_router(name)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    words = rf"lengths_B is \{lengths} for 2 sequences of 4 tokens; give each one from 1 to 4"
    with pytest.raises(UserError, match=words):
        model(
            torch.ones(2, 4, dtype=torch.long),
            Context(selection=selection, lengths_B=torch.tensor(lengths)),
        )
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.empty(0, 4, dtype=torch.long), r"of shape \(0, 4\); give \(B, T\), one token or more"),
        (torch.empty(2, 0, dtype=torch.long), r"of shape \(2, 0\)"),
        (torch.ones(4, dtype=torch.long), r"of shape \(4,\)"),
        (torch.ones(2, 4), "tokens are torch.float32; they must be a tensor"),
        ([[1, 2]], "tokens are list; they must be a tensor"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["vanilla", "mod", "expert_choice"])
def test_tokens_that_can_not_be_read(name: str, tokens: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(SHAPE, build_router(name))(tokens, Context())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("token_choice", {"top_k": 2.0}, r"top_k is 2\.0; it must be a whole number, such as 2"),
        ("token_choice", {"experts": "8"}, "experts is '8'; it must be a whole number"),
        ("token_choice", {"renormalise": 1}, "renormalise is 1; it must be true or false"),
        ("token_choice", {"affinity": "softmx"}, "affinity is 'softmx'; it must be one of 'softmax'"),
        ("mod", {"capacity": True}, "capacity is True; it must be a number"),
        ("mod", {"capacity": None}, "capacity is None; it must be a number"),
        ("mode_staged", {"capacity": "0.5"}, "capacity is '0.5'; it must be a number"),
        ("expert_choice", {"pool": "all"}, "pool is 'all'; it must be one of 'sequence', 'batch'"),
        ("expert_threshold", {"experts": 8.0}, r"experts is 8\.0; it must be a whole number, such as 8"),
        ("mixture_of_recursions", {"recursions": True}, "recursions is True"),
        ("threshold_skip", {"target": "a"}, "target is 'a'; it must be a number"),
        ("relu_routing", {"active_experts": 2.0}, r"active_experts is 2\.0"),
        ("mode_integrated", {"top_k": 2.0}, r"top_k is 2\.0"),
    ],
)
def test_a_router_made_in_python_refuses_options_of_another_type(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=f"^{words}"):
        router_class(name)(**options)


@pytest.mark.parametrize(
    ("tell", "sentence"),
    [
        (lambda trace: trace.loss(1, "even", 0.5), "loss 'even' of layer 1 is 0.5; it must be a tensor"),
        (
            lambda trace: trace.loss(1, "even", torch.ones(2)),
            r"loss 'even' of layer 1 is \(2,\); it must",
        ),
        (lambda trace: trace.show(1, "gate", [0.5]), r"layer 1 shows gate \[0.5\]; it must be a tensor"),
        (
            lambda trace: trace.show(1, "load", torch.tensor(3.0)),
            r"layer 1 shows load of shape \(\); it must be \(E,\), a number of each expert",
        ),
    ],
)
def test_a_trace_refuses_what_nobody_could_read(tell: Callable[[Trace], None], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tell(Trace())


def test_what_layers_share_is_made_once_to_a_context() -> None:
    made: list[str] = []

    def make(name: str) -> int:
        made.append(name)
        return len(made)

    context = Context()
    assert [context.once("a", lambda: make("a")) for _ in range(2)] == [1, 1]
    assert context.once("b", lambda: make("b")) == 2
    other = replace(context, positions_BT=torch.zeros(1, 1, dtype=torch.long))
    assert other.once("a", lambda: make("a")) == 3
    assert made == ["a", "b", "a"]


def test_angles_are_of_the_positions_that_a_context_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass without a gradient makes them once, and again for tokens that go by themselves, unless each
    sequence has positions of its own: then theirs are among them."""
    made: list[tuple[int, ...]] = []
    angles = Attention._angles

    def counted(self: Attention, x_BTD: Tensor, positions_BT: Tensor | None) -> Any:
        made.append(tuple(x_BTD.shape[:2]))
        return angles(self, x_BTD, positions_BT)

    monkeypatch.setattr(Attention, "_angles", counted)
    model = build_model(SHAPE, build_router("mod", {"capacity": 0.5}))
    with torch.no_grad():
        model(torch.arange(16).view(2, 8), Context())
        assert made == [(2, 8), (2, 4), (2, 4)]
        made.clear()
        positions_BT = torch.tensor([[3, 5, 7, 8, 9, 11, 12, 13], [0, 1, 2, 3, 4, 5, 6, 7]])
        model(torch.arange(16).view(2, 8), Context(positions_BT=positions_BT))
    assert made == [(2, 8)]
    made.clear()
    model(torch.arange(16).view(2, 8), Context())
    assert made == [(2, 8), (2, 4), (2, 8), (2, 4)]


def test_positions_that_can_not_be_are_refused() -> None:
    model = build_model(SHAPE, build_router("mod", {"capacity": 0.5}))
    tokens_BT, positions_BT = torch.arange(16).view(2, 8), torch.arange(8)[None]
    with pytest.raises(
        UserError, match=r"positions_BT is of shape \(1, 8\) for tokens of shape \(2, 8\)"
    ):
        model(tokens_BT, Context(positions_BT=positions_BT))
    beside = Context(selection="causal", cache=Cache(2), positions_BT=positions_BT.expand(2, 8))
    with pytest.raises(UserError, match="positions_BT with a cache"):
        model(tokens_BT, beside)
