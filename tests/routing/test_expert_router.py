"""ExpertRouter: plugins of a few lines are counted exactly, audited, trained with seeded noise, and told
in one sentence what a method returned and what was expected.

B sequences, T tokens, N tokens that are not padding, D width, E experts, K experts of a token.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench.audit import audit
from modbench.counting.counter import FlopCounter
from modbench.errors import UserError
from modbench.ledger import CONVENTIONS, Ledger, Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.expert_router import ExpertRouter
from modbench.routing.registry import build_router
from modbench.routing.scorer import LinearScorer
from modbench.routing.tokens import Tokens

SHAPE = ModelConfig(vocabulary=61, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48)


@dataclass(frozen=True, kw_only=True)
class Minimal(ExpertRouter):
    """Nothing but a name."""

    name: ClassVar[str] = "minimal"


@dataclass(frozen=True, kw_only=True)
class Deep(ExpertRouter):
    """An MLP as the scorer, and shared experts."""

    name: ClassVar[str] = "deep"
    shared_experts: int = 1
    shared_gate: bool = True

    def scorer(self, model: ModelConfig) -> nn.Module:
        hidden = nn.Linear(model.width, 12)
        return nn.Sequential(hidden, nn.GELU(), nn.Linear(12, self.experts))


@dataclass(frozen=True, kw_only=True)
class Jittered(ExpertRouter):
    """Noise on the logits in training."""

    name: ClassVar[str] = "jittered"
    top_k: int = 1

    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        if tokens.training:
            noise_NE = torch.rand(logits_NE.shape, generator=tokens.generator, device=logits_NE.device)
            logits_NE = logits_NE + 3 * noise_NE
        return super().choose(logits_NE, tokens)


@dataclass(frozen=True, kw_only=True)
class Hashed(ExpertRouter):
    """Experts by token id, without a scorer."""

    name: ClassVar[str] = "hashed"
    top_k: int = field(init=False, default=1)
    balance: float = field(init=False, default=0.0)

    def scorer(self, model: ModelConfig) -> None:
        return None

    def choose(self, logits_NE: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        ids_N1 = (tokens.ids * 7 % 13 % self.experts)[:, None]
        return ids_N1, torch.ones_like(ids_N1, dtype=logits_NE.dtype)


class Counting(LinearScorer):
    """Linear logits, and the number of training passes."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__(width, experts)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))


@dataclass(frozen=True, kw_only=True)
class Varying(ExpertRouter):
    """The experts with a score above 1 / E, any number of them."""

    name: ClassVar[str] = "varying"
    experts: int = 5

    def scorer(self, model: ModelConfig) -> nn.Module:
        return Counting(model.width, self.experts)

    def assign(self, logits_NE: Tensor, tokens: Tokens) -> Tensor:
        scores_NE = self.scores(logits_NE)
        return scores_NE.masked_fill(scores_NE <= 1 / self.experts, 0.0)

    def nominal_experts_per_token(self) -> float:
        return 1.6

    def losses(self, logits_NE: Tensor, gates_NE: Tensor) -> dict[str, Tensor]:
        return {"sparsity": 0.01 * gates_NE.sum(1).mean()}

    def update(self, scorer: Any, logits_NE: Tensor, gates_NE: Tensor, tokens: Tokens) -> None:
        scorer.passes += 1


ROUTERS = {
    "minimal": Minimal(),
    "capacity": Minimal(capacity_factor=1.0, z_loss=0.1),
    "deep": Deep(),
    "jittered": Jittered(),
    "hashed": Hashed(),
    "varying": Varying(expert_width=16, shared_experts=1),
}
every_router = pytest.mark.parametrize("name", ROUTERS)


def model_of(name: str, device: str = "cpu") -> Decoder:
    return build_model(SHAPE, ROUTERS[name], seed=2).to(device)


def drawn(sequences: int, tokens: int) -> Tensor:
    return torch.randint(SHAPE.vocabulary, (sequences, tokens))


def step(model: Decoder, tokens_BT: Tensor, **options: Any) -> tuple[Context, FlopCounter]:
    context = Context(**options)
    with FlopCounter() as counter:
        logits_BTV = model.train()(tokens_BT, context)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
        (loss + context.trace.auxiliary_loss()).backward()
    return context, counter


def same(ledger: Ledger, counter: FlopCounter) -> None:
    for convention in CONVENTIONS:
        assert ledger.total(convention) == counter.under(convention)


def test_a_router_with_nothing_but_a_name_is_mixtral() -> None:
    minimal = model_of("minimal")
    mixtral = build_model(SHAPE, build_router("token_choice"), seed=2)
    tokens_BT, contexts = drawn(2, 31), (Context(), Context())
    one_BTV, other_BTV = (m(tokens_BT, c) for m, c in zip((minimal, mixtral), contexts, strict=True))
    assert torch.equal(one_BTV, other_BTV)
    assert contexts[0].trace.losses == contexts[1].trace.losses
    workload = Workload.uniform(2, 31, "train")
    assert minimal.ledger(workload) == mixtral.ledger(workload)
    assert minimal.parameter_count("active") == mixtral.parameter_count("active")


@every_router
def test_flops_are_counted_exactly_with_padding_in_training_and_with_a_cache(name: str) -> None:
    model, tokens_BT = model_of(name), drawn(2, 33)
    for lengths in ((33, 33), (9, 33)):
        lengths_B = torch.tensor(lengths) if lengths[0] < 33 else None
        context, counter = step(copy.deepcopy(model), tokens_BT, lengths_B=lengths_B)
        counts = context.trace.counts
        same(
            model.ledger(Workload(lengths=lengths, phase="train", padding=True, counts=counts)), counter
        )
        context = Context(selection="causal", lengths_B=lengths_B)
        with FlopCounter() as counter, torch.no_grad():
            model.eval()(tokens_BT, context)
        same(model.ledger(Workload(lengths=lengths, padding=True, counts=context.trace.counts)), counter)
    cache, past = Cache(2), (0, 0)
    for new, phase in (((17, 5), "prefill"), ((1, 1), "decode"), ((1, 1), "decode")):
        lengths_B = torch.tensor(new) if new[0] > 1 else None
        context = Context(selection="causal", cache=cache, lengths_B=lengths_B, logits="last")
        with FlopCounter() as counter, torch.no_grad():
            model(tokens_BT[:, : max(new)], context)
        counts = context.trace.counts
        workload = Workload(lengths=new, past=past, phase=phase, padding=True, counts=counts)
        same(model.ledger(workload), counter)
        past = tuple(cache.read)


@every_router
def test_nominal_flops_are_those_on_shapes_alone_and_under_forced_balance(name: str) -> None:
    meta, tokens_BT = model_of(name, "meta"), torch.zeros(3, 31, dtype=torch.long, device="meta")
    workload = Workload.uniform(3, 31, "train")
    same(meta.ledger(workload), step(meta, tokens_BT)[1])
    model = model_of(name)
    same(model.ledger(workload), step(model, drawn(3, 31), forced_balance=True)[1])
    decoded, cache = Ledger(), Cache(2)
    for place in range(7):
        context = Context(selection="causal", cache=cache, forced_balance=True)
        with torch.no_grad():
            model.eval()(drawn(2, 1), context)
        sizes = Workload.uniform(2, 1, "decode", past=place, counts=context.trace.counts)
        decoded += model.ledger(sizes)
    assert decoded == model.ledger(Workload.uniform(2, 7, "decode"))


@pytest.mark.parametrize("name", ["deep", "hashed", "varying"])
def test_it_passes_the_audit(name: str) -> None:
    model = model_of(name)
    for _ in range(2):
        step(model, drawn(2, 40))
    found = audit(model.eval(), shapes=((3, 21),))
    failed = {finding.probe: finding.figure for finding in found if finding.failed}
    assert not failed


def test_a_repeated_pass_has_the_same_noise_and_the_next_step_another() -> None:
    tokens_BT, models = drawn(2, 33), [model_of("jittered") for _ in range(2)]
    found = [step(m, tokens_BT, checkpoint=on)[0] for m, on in zip(models, (False, True), strict=True)]
    assert found[0].trace.losses.keys() == found[1].trace.losses.keys()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    first_E = found[0].trace.tensors[0, "load"]
    again_E = step(models[0], tokens_BT)[0].trace.tensors[0, "load"]
    assert not torch.equal(first_E, again_E)
    assert torch.equal(step(models[1], tokens_BT)[0].trace.tensors[0, "load"], again_E)
    with torch.no_grad():
        quiet = [models[0].eval()(tokens_BT, Context(selection="causal")) for _ in range(2)]
    assert torch.equal(*quiet)


def test_any_number_of_experts_is_weighted_and_summed() -> None:
    part = build_model(SHAPE, Varying(expert_width=16), seed=2).double().layers[0].feed_forward
    x_BTD = torch.randn(2, 9, SHAPE.width, dtype=torch.float64)
    context = Context(lengths_B=torch.tensor([9, 4]))
    out_BTD = part.train()(x_BTD, context)
    scores_BTE = (x_BTD @ part.router.weight.T).softmax(-1)
    gates_BTE = scores_BTE * (scores_BTE > 0.2)
    bank, wanted_BTD = part.bank, torch.zeros_like(x_BTD)
    for e in range(5):
        gate_BTF, up_BTF = (x_BTD @ bank.up[e].T).chunk(2, dim=-1)
        y_BTD = (F.silu(gate_BTF) * up_BTF) @ bank.down[e].T
        wanted_BTD = wanted_BTD + gates_BTE[..., e : e + 1] * y_BTD
    wanted_BTD[1, 4:] = 0
    torch.testing.assert_close(out_BTD, wanted_BTD)
    real_BT = torch.arange(9) < torch.tensor([[9], [4]])
    met_N = (gates_BTE > 0).sum(-1)[real_BT]
    assert torch.equal(context.trace.tensors[0, "taken"], met_N)
    loss = context.trace.losses[0, "sparsity"]
    torch.testing.assert_close(loss, 0.01 * gates_BTE.sum(-1)[real_BT].mean())
    assert part.router.passes == 1
    part(x_BTD, Context(selection="causal"))
    part.eval()(x_BTD, Context())
    assert part.router.passes == 1


def ids(logits_NE: Tensor, k: int = 2) -> Tensor:
    return torch.zeros(len(logits_NE), k, dtype=torch.long)


def gates(logits_NE: Tensor, k: int = 2) -> Tensor:
    return torch.ones(len(logits_NE), k)


@pytest.mark.parametrize(
    ("method", "returns", "words"),
    [
        ("scorer", lambda *_: 3, "int; expected a torch.nn.Module or None"),
        ("scorer", lambda _, model: nn.Linear(model.width, 3), r"\(18, 3\) .* of shape \(18, 8\)"),
        ("choose", lambda _, x, t: ids(x), "a tensor of shape .* two tensors, expert ids and gates"),
        ("choose", lambda _, x, t: (gates(x), gates(x)), "expert ids as .*float32; .* integer values"),
        ("choose", lambda _, x, t: (ids(x), gates(x, 1)), r"gates as .* \(18, 1\) .* \(18, 2\)"),
        ("assign", lambda _, x, t: gates(x), r"\(18, 2\) .* \(18, 8\)"),
        ("losses", lambda *_: 0.1, "float; expected a dict of scalar tensors by name"),
        ("losses", lambda _, x, e: {"z": x}, "'z' as a tensor of shape .* a scalar tensor"),
        ("nominal_experts_per_token", lambda _: 9.0, "9.0; .* at most experts, 8"),
    ],
)
def test_a_method_that_returns_something_else_is_named(
    method: str, returns: Callable[..., Any], words: str
) -> None:
    methods = {method: returns, "name": "wrong"}
    if method == "nominal_experts_per_token":
        methods["assign"] = lambda _, x, t: x
    Wrong = dataclass(frozen=True, kw_only=True)(type("Wrong", (ExpertRouter,), methods))
    where = rf"{method} \(.*test_expert_router.py, line {returns.__code__.co_firstlineno}\)"
    with pytest.raises(UserError, match=rf"^router 'wrong': {where} returned .*{words}"):
        build_model(SHAPE, Wrong())(drawn(2, 9), Context())
