"""Plugin files: how routers are found, and mistakes of their authors: one sentence with name, file and
line."""

import hashlib
import inspect
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from modbench.cli.main import main
from modbench.cli.options import parsed_options
from modbench.errors import NO_VALUES, UserError
from modbench.ledger import Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer
from modbench.routing import registry
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.depth_router import DepthRouter
from modbench.routing.expert_router import ExpertRouter, RoutedExperts
from modbench.routing.hook_checks import ELSEWHERE
from modbench.routing.plugin_fault import authors_code
from modbench.routing.registry import build_router, code_sha256, load_plugin, router_class, router_names
from modbench.routing.router import Router, check_types, reject_unused

BUILT_IN = [n for n, module in registry.installed_modules().items() if module.startswith("modbench.")]
#: A scorer whose parameters stand in a list, and scorers that read a buffer which `update` changes.
HEAD = """import sys
from dataclasses import dataclass, field
import torch
from torch import nn
from modbench import DepthRouter, ExpertRouter, Router, register_router
from modbench.model.block import Block
from modbench.routers.mod import DepthOptions, MixtureOfDepths
from modbench.routing.scorer import LinearScorer
class Listed(nn.Module):
    def __init__(self, width, scores):
        super().__init__()
        self.heads = [nn.Linear(width, 1) for _ in range(scores)]
    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], -1)
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
class Own(Block):
    def forward(self, x_BTD): return x_BTD
"""
DECORATED = HEAD + '@register_router("mine")\n@dataclass(frozen=True, kw_only=True)\nclass Mine({}):\n'
PLAIN = (
    DECORATED.format("Router") + "    strength: float = 1.0\n    def build_layer(self, model, layer):\n"
)
PLAIN += "        return Block(model, layer)\n"
#: The line of the class's first member.
FIRST = DECORATED.count("\n") + 1
SHAPE = ModelConfig(vocabulary=9, width=16, layers=4, heads=1)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(base: str, *members: str) -> None:
    """Load a plugin file with the router 'mine', a subclass of ``base``."""
    text = "".join(f"    {line}\n" for line in members)
    Path("mine.py").write_text(DECORATED.format(base) + text)
    load_plugin("mine.py")


def built(base: str, *members: str) -> RoutedDecoder:
    load(base, *members)
    return build_model(SHAPE, build_router("mine"))


def train(model: RoutedDecoder, *, checkpoint: bool = False) -> Tensor:
    """Run one forward and backward pass; return the gradients of the first router."""
    tokens_BT, context = torch.arange(36).view(2, 18) % 9, Context(checkpoint=checkpoint)
    loss = model.train().loss(tokens_BT, tokens_BT.roll(-1, 1), context)
    (loss + context.trace.auxiliary_loss()).backward()
    gradients = [p.grad.flatten() for n, p in model.named_parameters() if ".router." in n]
    return torch.cat(gradients)


def used(base: str, *members: str) -> None:
    """Build a model, ask for what it states and train it."""
    load(base, *members)
    with authors_code(registry.router_class("mine"), "a training step"):
        model = build_model(SHAPE, build_router("mine"))
        model.ledger(Workload.uniform(1, 2))
        model.parameter_count("active")
        model.nominal_counts(Workload.uniform(1, 2))
        train(model)


def test_a_plugin_file_registers_its_router_once() -> None:
    Path("mine.py").write_text(PLAIN)
    assert load_plugin("mine.py") == load_plugin("mine.py") == ["mine"]
    assert build_router("mine", {"strength": 2}).options() == {"strength": 2.0}
    assert registry.plugin_sha256("mine") is not None
    assert registry.plugin_sha256("vanilla") is None


def test_a_plugin_that_raises_leaves_nothing_registered() -> None:
    Path("half.py").write_text(PLAIN + "\nraise ValueError('late')\n")
    with pytest.raises(UserError, match="late"):
        load_plugin("half.py")
    assert "mine" not in router_names()
    assert not [name for name in sys.modules if name.startswith("modbench_plugin") and "half" in name]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", pytest.param("raise KeyError('k')", marks=pytest.mark.full)])
def test_a_built_in_router_that_a_plugin_imports_stays_built_in(end: str, tmp_path: Path) -> None:
    Path("mine.py").write_text(f"import modbench.routers.mod\n{PLAIN}\n{end}")
    code = (
        "from modbench.routing import registry\n"
        "try: registry.load_plugin('mine.py')\n"
        "except registry.UserError: pass\n"
        "assert registry.plugin_sha256('mod') is registry.plugin_file('mod') is None\n"
        "registry.build_router('mod')\n"
        "print(registry.plugin_file('mine'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip().endswith("None" if end else "mine.py")


@pytest.mark.parametrize("changed", ["__init__.py", "routers/mine.py"])
def test_any_file_of_the_package_changes_the_hash(changed: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "routers").mkdir(parents=True)
    for name in ("__init__.py", "routers/__init__.py", "routers/mine.py"):
        (package / name).write_text("x = 1\n")
    before = code_sha256(package / "routers" / "mine.py")
    alone = tmp_path / "outside.py"
    alone.write_text("x = 1\n")
    assert code_sha256(package / "routers" / "mine.py") == before
    assert code_sha256(alone) == hashlib.sha256(b"x = 1\n").hexdigest()
    (package / changed).write_text("x = 2\n")
    assert code_sha256(package / "routers" / "mine.py") != before


@pytest.mark.parametrize(
    ("router", "options", "words"),
    [
        ("mod", {"capcity": 0.5}, "has no 'capcity'; did you mean 'capacity'"),
        ("mod", {"capacity": "half"}, "capacity is 'half'"),
        ("mod", {"every": True}, "every is True"),
        ("mod", {"gate": "tanh"}, "gate is 'tanh'; it should be 'linear'"),
        ("vanilla", {"capacity": 0.5}, "has no 'capacity'; known: none"),
        ("mode_integrated", {"no_op_experts": 0}, "no_op_experts is 0"),
    ],
)
def test_a_bad_option_names_field_value_and_remedy(router: str, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        build_router(router, options)
    assert f"router '{router}'" in str(raised.value)


@pytest.mark.parametrize("router", BUILT_IN)
def test_an_option_of_a_wrong_type_gets_one_sentence(router: str) -> None:
    deep = parsed_options([[f"value={'[' * 900}{']' * 900}"]])["value"]
    for option in (each.name for each in fields(router_class(router)) if each.init):
        for value in ([3], {"a": 1}, [[3] * 200], deep):
            with pytest.raises(UserError) as raised:
                build_router(router, {option: value})
            assert str(raised.value).startswith(f"router '{router}' {option} is ")
            assert len(str(raised.value)) <= 300


def test_a_required_option_says_where_to_give_it() -> None:
    Path("mine.py").write_text(PLAIN.replace("strength: float = 1.0", "strength: float"))
    load_plugin("mine.py")
    with pytest.raises(UserError, match="needs 'strength'; give it a value"):
        build_router("mine")


@dataclass(frozen=True, kw_only=True)
class Base(Router):
    """A router with two options."""

    name: ClassVar[str] = "base"
    kept: float = 1.0
    hidden: int = 2

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Block(model, layer)


def test_a_hidden_field_is_no_option() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Derived(Base):
        hidden: int = field(init=False, default=3)

    router = Derived(kept=2.0)
    assert router.options() == {"kept": 2.0}
    check_types(router)
    reject_unused(router, ("hidden", True, "kept"), ("kept", False, "hidden"))
    with pytest.raises(TypeError, match="hidden"):
        Derived(hidden=1)  # type: ignore[call-arg]


LINE = "@dataclass(frozen=True, kw_only=True)\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PLAIN.replace("frozen=True, ", ""), "(Mine) must be a frozen dataclass"),
        (PLAIN.replace(LINE, ""), "(Mine) must be a frozen dataclass"),
        (PLAIN.replace("(Router)", ""), "(Mine) must derive from DepthRouter"),
        (PLAIN.replace("build_layer", "build_layers"), "(Mine) does not define build_layer"),
        (PLAIN.replace('@register_router("mine")\n', ""), "registers no router"),
        (PLAIN + "    gates: list = []\n", "mutable default <class 'list'> for field gates"),
        ("x = (1\n", "raised SyntaxError: '(' was never closed (mine.py, line 1)"),
        (b"\x89PNG\xff", "raised SyntaxError"),
        ("import no_such_package\n", "No module named 'no_such_package' (mine.py, line 1)"),
        (
            PLAIN.replace("frozen=True, kw_only=True", "").replace("(Router)", "(DepthOptions)"),
            "non-frozen dataclass from a frozen one",
        ),
    ],
)
def test_a_mistake_in_a_plugin_file_gets_one_sentence(
    text: str | bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_bytes(text.encode() if isinstance(text, str) else text)
    assert main(["flops", "--router", "mine", "--plugin", "mine.py"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("modbench: plugin mine.py")
    assert words in line


def test_two_plugins_of_one_name_are_both_named() -> None:
    Path("other").mkdir()
    for path in ("other/mine.py", "mine.py"):
        Path(path).write_text(PLAIN)
    load_plugin("other/mine.py")
    with pytest.raises(UserError, match=r"router 'mine' of mine.py is already .* by other/mine.py"):
        load_plugin("mine.py")


@pytest.mark.parametrize(
    ("base", "method", "hook"),
    [
        ("DepthRouter", "gates", "'gate'"),
        ("ExpertRouter", "nominal_experts", "'nominal_experts_per_token'"),
        ("DepthRouter", "choose", "override 'selected'"),
        ("ExpertRouter", "gate", "return the gates from 'choose'"),
        ("MixtureOfDepths", "gate", "an option has that name"),
    ],
)
def test_a_method_that_is_no_hook_is_refused_by_name_and_line(base: str, method: str, hook: str) -> None:
    with pytest.raises(UserError) as raised:
        load(base, f"def {method}(self, *_): ...")
    start = f"plugin mine.py: router 'mine' (Mine) defines {method} (mine.py, line {FIRST})"
    assert str(raised.value).startswith(start)
    assert hook in str(raised.value)


@pytest.mark.parametrize(
    ("base", "members"),
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
def test_hooks_and_helpers_of_other_names_are_accepted(base: str, members: list[str]) -> None:
    train(built(base, *members))


def test_the_listed_hooks_belong_to_the_other_base_class() -> None:
    bases = {"DepthRouter": (DepthRouter, ExpertRouter), "ExpertRouter": (ExpertRouter, DepthRouter)}
    for name, (own, other) in bases.items():
        methods = {m for m in dir(other) if inspect.isfunction(getattr(other, m)) and m[0] != "_"}
        assert {m for m in methods if not hasattr(own, m)} <= ELSEWHERE[name].keys()
        assert all(hasattr(other, hook) and not hasattr(own, hook) for hook in ELSEWHERE[name])


AT = f"(mine.py, line {FIRST})"
LAYER = "def build_layer(self, model, layer): return type('Wrong', (Block,), {{{}}})(model, layer)"


@pytest.mark.parametrize(
    ("base", "members", "words"),
    [
        ("Router", ["def __post_init__(self): 1 / 0", LAYER], f"zero in its construction {AT}"),
        (
            "Router",
            ["def build_layer(self, model, layer): raise KeyError('lost')"],
            f"raised KeyError: 'lost' in build_layer of layer 0 {AT}",
        ),
        ("Router", ["def build_layer(self, *_): return None"], f"build_layer {AT} returned NoneType"),
        ("Router", [LAYER.format("'ledger': lambda *_: 5")], "has no attribute 'entries' in ledger"),
        ("Router", [LAYER.format("'ledger': lambda *_: sys.exit(0)")], f"SystemExit: 0 in ledger {AT}"),
        ("Router", [LAYER.format("'active_parameters': lambda _: 1 / 0")], f"in active_parameters {AT}"),
        ("Router", [LAYER.format("'nominal_counts': lambda *_: 5")], "TypeError: "),
        ("DepthRouter", ["capacity: float = 2.0"], "capacity is 2.0; it should be less"),
        ("ExpertRouter", ["top_k: int = 9"], "router 'mine': top_k is 9 of 8 experts"),
        ("DepthRouter", ["first_dense: int = 5"], "router 'mine': no block of 4 is routed"),
        (
            "ExpertRouter",
            ["def scorer(self, model): return Listed(model.width, self.experts)"],
            "Listed (mine.py, line 10) keeps parameters in 'heads', a list",
        ),
        ("DepthRouter", ["def scorer(self, model): return Block(model, 0)"], "argument"),
        *(
            (
                "DepthRouter",
                [
                    f"class Plain(nn.Linear): forward = lambda self, x_BTD: {code}",
                    f"def {hook}(self, model, *_): return Mine.Plain(model.width, model.width)",
                ],
                f"{AT}; {NO_VALUES}" if hook == "scorer" else f"{NO_VALUES} {AT}",
            )
            for hook, code in (
                ("scorer", "x_BTD[..., 0] * x_BTD.mean().item()"),
                ("scorer", "x_BTD[..., 0] + torch.zeros(x_BTD.shape[:-1])"),
                ("scorer", "torch.where(x_BTD > 0, 1, x_BTD[x_BTD > 0].mean())[..., 0]"),
                ("feed_forward", "x_BTD[x_BTD > 0].sum() + x_BTD"),
            )
        ),
        ("Router", ["def build_layer(self, model, layer): return Own(model, layer)"], "argument"),
        ("DepthRouter", ["def selected(self, scores_BT): return scores_BT > 0"], "argument"),
        *(
            (
                "ExpertRouter",
                [
                    "def choose(self, logits_NE, tokens):",
                    "    gates_NK, ids_NK = logits_NE.topk(2)",
                    f"    return {ids}, gates_NK",
                ],
                f"router 'mine': choose {AT} returned {words}",
            )
            for ids, words in (
                ("ids_NK + 1", "expert id 8; expected ids from 0 to 7"),
                ("ids_NK - 1", "expert id -1"),
                ("ids_NK[:, :1].expand(-1, 2)", "an expert twice for one token"),
            )
        ),
    ],
)
def test_a_mistake_in_a_routers_code_names_router_method_and_line(
    base: str, members: list[str], words: str
) -> None:
    with pytest.raises(UserError) as raised:
        used(base, *members)
    assert str(raised.value).count("router 'mine'") == 1
    assert words in str(raised.value)


@pytest.mark.parametrize("command", ["flops --router mine", "plan --router mine --budget 1e15"])
def test_commands_print_the_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = DECORATED.format("Router") + "    " + LAYER.format("'ledger': lambda *_: 1 / 0")
    Path("mine.py").write_text(text)
    assert main([*command.split(), "--plugin", "mine.py"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("modbench: router 'mine' raised ZeroDivisionError: ")


def test_a_plain_module_in_place_of_experts_is_wrapped() -> None:
    module = "def feed_forward(self, model, layer): return nn.Linear(model.width, model.width)"
    model = built("ExpertRouter", module)
    assert not any(isinstance(part, RoutedExperts) for part in model.modules())
    assert isinstance(model.layers[0].feed_forward.module, nn.Linear)
    assert model.flops_source == "counted"
    model(torch.arange(8)[None], Context(selection="causal"))


@pytest.mark.parametrize("kind", ["Scaled", "Learned"])
@pytest.mark.parametrize(("base", "scores"), [("DepthRouter", "1"), ("ExpertRouter", "self.experts")])
def test_update_may_write_in_place_what_the_backward_pass_needs(
    base: str, scores: str, kind: str
) -> None:
    """The gradient is that of the scale before the update, with activation checkpointing, too, which
    repeats the forward pass after the update."""
    load(
        base,
        "step: float = 0.0",
        f"def scorer(self, model): return {kind}(model.width, {scores})",
        "def update(self, scorer, *_): scorer.scale += self.step",
    )
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
