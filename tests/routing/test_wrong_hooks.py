"""Hooks that would not run as the author means: one sentence with the hook's file and line."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing import registry
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.depth_router import DepthRouter
from modbench.routing.expert_router import ExpertRouter, RoutedExperts
from modbench.routing.hook_checks import ELSEWHERE
from modbench.routing.plugin_fault import authors_code
from modbench.routing.registry import build_router, load_plugin

HEAD = """from dataclasses import dataclass
import torch
from torch import nn
from modbench import DepthRouter, ExpertRouter, Router, register_router
from modbench.model.block import Block
from modbench.routers.expert_choice import ExpertChoice
from modbench.routers.mod import MixtureOfDepths
from modbench.routing.scorer import LinearScorer
class Listed(nn.Module):
    def __init__(self, width, scores):
        super().__init__()
        self.heads = [nn.Linear(width, 1) for _ in range(scores)]
    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], -1)
class Own(Block):
    def forward(self, x_BTD): return x_BTD

@register_router("mine")
@dataclass(frozen=True, kw_only=True)
class Mine({base}):
"""
#: Line of the first method.
FIRST = HEAD.count("\n") + 1
SHAPE = ModelConfig(vocabulary=9, width=16, layers=4, heads=1)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.installed_modules():  # registered at its first import
        registry.router_class(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))
    monkeypatch.chdir(tmp_path)


def load(base: str, *methods: str) -> None:
    Path("mine.py").write_text(HEAD.format(base=base) + "".join(f"    {each}\n" for each in methods))
    load_plugin("mine.py")


def built(base: str, *methods: str) -> RoutedDecoder:
    load(base, *methods)
    return build_model(SHAPE, build_router("mine"))


def train(model: RoutedDecoder, *, checkpoint: bool = False) -> Tensor:
    """Run one forward and backward pass; return the gradients of the first router."""
    tokens_BT, context = torch.arange(36).view(2, 18) % 9, Context(checkpoint=checkpoint)
    loss = model.train().loss(tokens_BT, tokens_BT.roll(-1, 1), context)
    (loss + context.trace.auxiliary_loss()).backward()
    gradients = [p.grad.flatten() for n, p in model.named_parameters() if ".router." in n]
    return torch.cat(gradients)


@pytest.mark.parametrize(
    ("base", "method", "words"),
    [
        ("DepthRouter", "def choose(self, logits_NE, tokens): ...", ("choose", "override 'selected'")),
        ("ExpertRouter", "def gate(self, scores_BT): ...", ("gate", "return the gates from 'choose'")),
        ("MixtureOfDepths", "def gate(self, scores_BT): ...", ("gate", "an option has that name")),
        ("DepthRouter", "def selects(self, scores_BT, tokens): ...", ("selects", "'selected'")),
        ("ExpertRouter", "def chose(self, logits_NE, tokens): ...", ("chose", "'choose'")),
    ],
)
def test_a_method_that_is_no_hook_is_refused_by_name_and_line(
    base: str, method: str, words: tuple[str, str]
) -> None:
    with pytest.raises(UserError) as raised:
        load(base, method)
    name, remedy = words
    assert str(raised.value).startswith(
        f"plugin mine.py: router 'mine' (Mine) defines {name} (mine.py, line {FIRST})"
    )
    assert remedy in str(raised.value)


@pytest.mark.parametrize(
    ("base", "methods"),
    [
        ("DepthRouter", ["def gate(self, scores, *, scale=2): return scale * scores"]),
        ("DepthRouter", ["def _choose(self, x): return x > 0", "def threshold_of(self, x): return x"]),
        (
            "ExpertRouter",
            [
                "def choose(self, logits_NE, tokens): return super().choose(-logits_NE, tokens)",
                "def assign(self, *given): return 2 * super().assign(*given)",
            ],
        ),
        ("ExpertRouter", ["def __post_init__(self): ExpertRouter.__post_init__(self)"]),
        ("MixtureOfDepths", ["def applied_gate(self, scores_BT): return scores_BT.tanh()"]),
    ],
)
def test_hooks_and_helpers_of_other_names_are_accepted(base: str, methods: list[str]) -> None:
    train(built(base, *methods))


def test_the_listed_hooks_belong_to_the_other_base_class() -> None:
    bases = {"DepthRouter": (DepthRouter, ExpertRouter), "ExpertRouter": (ExpertRouter, DepthRouter)}
    for name, hooks in ELSEWHERE.items():
        own, other = bases[name]
        assert all(hasattr(other, hook) and not hasattr(own, hook) for hook in hooks)


MODULE = "def feed_forward(self, model, layer): return nn.Linear(model.width, model.width)"


def test_parameters_in_a_list_are_refused() -> None:
    with pytest.raises(UserError) as raised:
        built("ExpertRouter", "def scorer(self, model): return Listed(model.width, self.experts)")
    assert "Listed (mine.py, line 10) keeps parameters in 'heads', a list" in str(raised.value)


@pytest.mark.parametrize(
    ("base", "method"),
    [
        ("DepthRouter", "def scorer(self, model): return Block(model, 0)"),
        ("Router", "def build_layer(self, model, layer): return Own(model, layer)"),
        ("DepthRouter", "def selected(self, scores_BT): return scores_BT > 0"),
    ],
)
def test_wrong_arguments_are_an_error_of_the_router(base: str, method: str) -> None:
    model = built(base, method)
    with (
        pytest.raises(UserError, match=r"router 'mine' raised TypeError: .*argument"),
        authors_code(model.router, "a training step"),
    ):
        train(model)


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ("ids_NK + 1", "expert id 8; expected ids from 0 to 7"),
        ("ids_NK - 1", "expert id -1; expected ids from 0 to 7"),
        ("ids_NK[:, :1].expand(-1, 2)", "an expert twice for one token; expected different experts"),
    ],
)
def test_expert_ids_out_of_range_or_twice_for_a_token_are_refused(ids: str, sentence: str) -> None:
    model = built(
        "ExpertRouter",
        "def choose(self, logits_NE, tokens):",
        "    gates_NK, ids_NK = logits_NE.topk(2)",
        f"    return {ids}, gates_NK",
    )
    with pytest.raises(UserError) as raised:
        train(model)
    where = f"router 'mine': choose (mine.py, line {FIRST}) returned"
    assert str(raised.value).startswith(f"{where} {sentence}")


def test_a_plain_module_in_place_of_experts_is_wrapped() -> None:
    model = built("ExpertRouter", MODULE)
    assert not any(isinstance(part, RoutedExperts) for part in model.modules())
    assert isinstance(model.layers[0].feed_forward.module, nn.Linear)
    assert model.flops_source == "counted"
    model(torch.arange(8)[None], Context(selection="causal"))


#: A scorer whose forward pass reads a buffer that `update` changes in place.
SCALED = """
class Scaled(nn.Module):
    def __init__(self, width, scores):
        super().__init__()
        self.linear = nn.Linear(width, scores)
        self.register_buffer("scale", torch.ones(()))
    def forward(self, x):
        return self.linear(x).squeeze(-1) / self.scale
class Learned(LinearScorer):
    def __init__(self, width, scores):
        super().__init__(width, None if scores == 1 else scores)
        self.register_buffer("scale", torch.ones(()))
    def forward(self, x):
        return super().forward(x) / self.scale
"""


@pytest.mark.parametrize("kind", ["Scaled", "Learned"])
@pytest.mark.parametrize(("base", "scores"), [("DepthRouter", "1"), ("ExpertRouter", "self.experts")])
def test_update_may_write_in_place_what_the_backward_pass_needs(
    base: str, scores: str, kind: str
) -> None:
    """The gradient is that of the scale before the update, with activation checkpointing, too, which
    repeats the forward pass after the update."""
    head = HEAD.replace("\n@register", f"{SCALED}\n@register").format(base=base)
    Path("mine.py").write_text(
        f"{head}    step: float = 0.0\n"
        f"    def scorer(self, model): return {kind}(model.width, {scores})\n"
        "    def update(self, scorer, *_): scorer.scale += self.step\n"
    )
    load_plugin("mine.py")
    still = train(build_model(SHAPE, build_router("mine")))
    assert still.any()
    for checkpoint in (False, True):
        model = build_model(SHAPE, build_router("mine", {"step": 3.0}))
        assert torch.equal(train(model, checkpoint=checkpoint), still)
        scales = {value.item() for name, value in model.named_buffers() if name.endswith("scale")}
        assert scales == {4.0}


def test_experts_in_some_layers_only_may_have_all_hooks() -> None:
    model = built(
        "ExpertRouter",
        "def feed_forward(self, model, layer):",
        "    dense = nn.Linear(model.width, model.width)",
        "    return super().feed_forward(model, layer) if layer else dense",
        "def choose(self, logits_NE, tokens): return super().choose(logits_NE, tokens)",
    )
    experts = [part for part in model.modules() if isinstance(part, RoutedExperts)]
    assert len(experts) == SHAPE.layers - 1
