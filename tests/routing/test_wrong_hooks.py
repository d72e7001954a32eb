"""Hooks that would not run as the author means: one sentence with the hook's file and line."""

from dataclasses import dataclass
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
from modbench.routing.hook_checks import ELSEWHERE, REPLACED, check_hooks
from modbench.routing.registry import build_router, load_plugin
from modbench.routing.tokens import Tokens

HEAD = """from dataclasses import dataclass
import torch
from torch import nn
from modbench import DepthRouter, ExpertRouter, Router, register_router
from modbench.model.block import Block
from modbench.routers.expert_choice import ExpertChoice
from modbench.routers.mod import MixtureOfDepths
from modbench.routing.scorer import LinearScorer
ONE = nn.Linear(16, 8)
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
SELECTED = "def selected(self, scores_BT, tokens): return tokens.positions % 2 == 0"


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
    ("base", "methods", "sentence"),
    [
        (
            "DepthRouter",
            ["def choose(self, logits_NE, tokens): ..."],
            "(Mine) defines choose (mine.py, line {line}), which DepthRouter never calls; override "
            "'selected'",
        ),
        (
            "ExpertRouter",
            ["def gate(self, scores_BT): ..."],
            "(Mine) defines gate (mine.py, line {line}), which ExpertRouter never calls; return the "
            "gates from 'choose'",
        ),
        (
            "ExpertRouter",
            [
                "def choose(self, logits_NE, tokens): ...",
                "def assign(self, logits_NE, tokens): return logits_NE.relu()",
            ],
            "(Mine) defines choose (mine.py, line {line}), which is never called: assign of Mine "
            "(mine.py, line {next}) replaces it; move it there, or remove one of them",
        ),
        (
            "ExpertChoice",
            ["def choose(self, logits_NE, tokens): ..."],
            "choose (mine.py, line {line}), which is never called: assign of ExpertChoice replaces it",
        ),
        (
            "MixtureOfDepths",
            ["def gate(self, scores_BT): return scores_BT.sigmoid()"],
            "gate (mine.py, line {line}), which is never called: an option has that name; override "
            "'applied_gate'",
        ),
        (
            "DepthRouter",
            ["def __post_init__(self): self.capacity"],
            "__post_init__ (mine.py, line {line}) does not call super().__post_init__()",
        ),
        (
            "ExpertRouter",
            ["def choose(self, logits_NE): ..."],
            "choose (mine.py, line {line}) takes (self, logits_NE); it is called with (self, logits_NE, "
            "tokens)",
        ),
        (
            "DepthRouter",
            ["@staticmethod", "def gate(self, scores_BT): ..."],
            "gate (mine.py, line {line}) takes (self, scores_BT); it is called with (scores_BT)",
        ),
        (
            "Router",
            ["def build_layer(self, model): ..."],
            "build_layer (mine.py, line {line}) takes (self, model); it is called with (self, model, ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_a_hook_that_would_never_be_called_is_refused_when_loaded(
    base: str, methods: list[str], sentence: str
) -> None:
    with pytest.raises(UserError) as raised:
        load(base, *methods)
    assert str(raised.value).startswith("plugin mine.py: router 'mine'")
    assert sentence.format(line=FIRST, next=FIRST + 1) in str(raised.value)
    assert str(raised.value).count(f"line {FIRST})") == 1


@pytest.mark.parametrize(
    ("base", "methods"),
    [
        ("DepthRouter", ["def gate(self, scores, *, scale=2): return scale * scores"]),
        (
            "DepthRouter",
            [
                "def choose(self, x): return x > 0",
                "def selected(self, x, tokens): return self.choose(-x)",
            ],
        ),
        (
            "ExpertRouter",
            [
                "def choose(self, logits_NE, tokens): return super().choose(-logits_NE, tokens)",
                "def assign(self, *given): return 2 * super().assign(*given)",
            ],
        ),
        (
            "ExpertRouter",
            [
                "def choose(self, logits_NE, tokens): return logits_NE.relu()",
                "def _doubled(self, *given): return 2 * self.choose(*given)",
                "def assign(self, *given): return self._doubled(*given)",
            ],
        ),
        ("ExpertRouter", ["def __post_init__(self): ExpertRouter.__post_init__(self)"]),
        ("MixtureOfDepths", ["def applied_gate(self, scores_BT): return scores_BT.tanh()"]),
    ],
)
def test_a_hook_that_something_calls_is_accepted(base: str, methods: list[str]) -> None:
    train(built(base, *methods))


def test_the_listed_hooks_belong_to_the_other_base_class() -> None:
    bases = {"DepthRouter": (DepthRouter, ExpertRouter), "ExpertRouter": (ExpertRouter, DepthRouter)}
    for name, hooks in ELSEWHERE.items():
        own, other = bases[name]
        assert all(hasattr(other, hook) and not hasattr(own, hook) for hook in hooks)
    for hook, by in REPLACED.items():
        assert any(hasattr(base, hook) and hasattr(base, by) for base in (DepthRouter, ExpertRouter))


NONE = "def scorer(self, model): return None"
MODULE = "def feed_forward(self, model, layer): return nn.Linear(model.width, model.width)"


@pytest.mark.parametrize(
    ("base", "methods", "sentence"),
    [
        (
            "DepthRouter",
            ["def gate(self, scores_BT): ...", NONE, SELECTED],
            "gate (mine.py, line {line}) is never called, because scorer returns None; remove one of",
        ),
        (
            "ExpertRouter",
            ["def update(self, scorer, logits_NE, chosen, tokens): ...", NONE],
            "update (mine.py, line {line}) is never called, because scorer returns None; remove one of",
        ),
        (
            "ExpertRouter",
            ["def choose(self, logits_NE, tokens): ...", MODULE],
            "choose (mine.py, line {line}) is never called, because feed_forward returns no experts",
        ),
        (
            "ExpertRouter",
            ["def scorer(self, model): return ONE"],
            "scorer (mine.py, line {line}) returned the same Linear as for another layer or model; "
            "expected a new module in each call",
        ),
        (
            "DepthRouter",
            ["def scorer(self, model): return nn.Linear(16, 1).requires_grad_(False)"],
            "scorer (mine.py, line {line}) returned a Linear whose parameters are all frozen; expected "
            "one that is trained, or buffers in place of parameters",
        ),
        (
            "ExpertRouter",
            ["def scorer(self, model): return Listed(model.width, self.experts)"],
            "Listed (mine.py, line 11) keeps parameters in 'heads', a list, where training does not "
            "find them; use nn.Parameter, nn.ParameterList or nn.ModuleList",
        ),
        (
            "DepthRouter",
            ["def scorer(self, model): return Block(model, 0)"],
            "forward of Block takes (x_BTD, context); it is called with (x)",
        ),
        (
            "Router",
            ["def build_layer(self, model, layer): return Own(model, layer)"],
            "forward of Own (mine.py, line 17) takes (x_BTD); it is called with (x_BTD, context)",
        ),
    ],
)
def test_a_module_that_would_not_be_trained_as_meant_is_refused(
    base: str, methods: list[str], sentence: str
) -> None:
    with pytest.raises(UserError) as raised:
        built(base, *methods)
    assert str(raised.value).startswith(f"router 'mine': {sentence.format(line=FIRST)}")


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


def test_an_update_of_a_parameter_names_its_line() -> None:
    model = built(
        "DepthRouter", "def update(self, scorer, *_): scorer.weight.div_(scorer.weight.norm())"
    )
    with pytest.raises(UserError) as raised:
        train(model)
    assert str(raised.value) == (
        f"router 'mine': update (mine.py, line {FIRST}) writes into the parameter 'weight', which the "
        "optimizer trains; write into buffers only"
    )


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


def test_a_class_further_down_may_replace_an_inherited_hook() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Chooses(ExpertRouter):
        def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
            return super().choose(logits_NE, tokens)

    @dataclass(frozen=True, kw_only=True)
    class Assigns(Chooses):
        def assign(self, logits_NE: Tensor, tokens: Tokens) -> Tensor:
            return logits_NE.softmax(-1)

    check_hooks("router 'mine'", Assigns)
