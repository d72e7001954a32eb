"""The audit is as strict as the table needs it: built-in routers and blocks with one wrong method.

B sequences, T tokens, D width.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mutants
import pytest
import torch
from mutants import SHAPE
from torch import Tensor

from modbench.audit import Finding, audit, findings
from modbench.audit.decoding import decode_parity
from modbench.audit.finding import Subject
from modbench.audit.leaks import causal
from modbench.audit.warmed import warmed
from modbench.ledger import Flops, Ledger, Workload
from modbench.model.block import Block
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.records.probes import leak_verdict
from modbench.routers.expert_choice import ExpertChoice
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouted
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.registry import build_router

#: A method, given the right one.
Wrong = Callable[[Callable[..., Any]], Callable[..., Any]]
FUSED = ((3, 63),)


def model_of(name: str, layers: int = 2, **options: object) -> Decoder:
    shape = replace(SHAPE, layers=layers)
    model = build_model(shape, build_router(name, options), seed=4)
    for key, parameter in model.named_parameters():
        if "router" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def failed(found: list[Finding]) -> set[int]:
    return {finding.probe for finding in found if finding.failed}


def output(change: Callable[[Tensor, Tensor, Context], Tensor]) -> Wrong:
    """A forward pass whose result y is changed, given y, x and the context."""
    return lambda right: lambda self, x, context: change(right(self, x, context), x, context)


def given(change: Callable[[Tensor], Tensor]) -> Wrong:
    """A forward pass whose input is changed."""
    return lambda right: lambda self, x, context: right(self, change(x), context)


def fewer_flops(where: Callable[[Workload], bool]) -> Wrong:
    def wrong(right: Callable[..., Ledger]) -> Callable[..., Ledger]:
        def ledger(self: Block, workload: Workload) -> Ledger:
            entries = right(self, workload)
            if not where(workload):
                return entries
            return Ledger({key: Flops(f.model // 10, f.full // 10) for key, f in entries})

        return ledger

    return wrong


def float32_gate(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, x, c: x + x.float().mean(-1, keepdim=True).sigmoid() * self.delta(x, c)


def without_causal(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, logits, tokens: right(self, logits, replace(tokens, causal=False))


#: Class and method; router; what is wrong; the probes that fail, on shapes that are not the usual ones.
CASES: dict[str, tuple[type, str, str, Wrong, set[int], tuple[tuple[int, int], ...] | None]] = {
    "experts see later tokens": (
        ExpertChoice, "assign", "expert_choice", without_causal, {1, 3}, None,
    ),
    # To decode is to read shorter sequences.
    "padding counts": (
        RoutedExperts, "forward", "token_choice",
        output(lambda y, x, c: y * (1 + 1e-4 * x.shape[1])), {2, 3}, None,
    ),
    "a skipped token changes": (
        DepthRouted, "forward", "mod", output(lambda y, x, c: y * (1 + 1e-12)), {5}, None,
    ),
    "a gate in float32": (Block, "forward", "vanilla", float32_gate, set(), None),
    # Probe 3 decodes a longer text.
    "leaks where texts are long": (
        Block, "forward", "vanilla",
        given(lambda x: x + 0.1 * x.roll(-1, 1) if x.shape[1] > 64 else x), {3}, None,
    ),
    "leaks at that length": (
        Block, "forward", "vanilla",
        given(lambda x: x + 0.1 * x.roll(-1, 1) if x.shape[1] > 64 else x), {1, 2, 3}, ((4, 128),),
    ),
    # 4 of the 8 are decoded, and the first of what is decoded is another token.
    "mixes large batches": (
        Block, "forward", "vanilla",
        given(lambda x: x + 0.1 * x[:, :1].mean(0, keepdim=True) if x.shape[0] > 3 else x),
        {2, 3}, ((8, 31),),
    ),
    "ledger lies without padding": (
        Block, "ledger", "vanilla", fewer_flops(lambda w: not w.padding), {9}, None,
    ),
    "ledger lies of what is realised": (
        Block, "ledger", "token_choice",
        fewer_flops(lambda w: bool(w.counts) and not w.padding), {9}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_method_fails_its_probes_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, method, router, wrong, probes, shapes = CASES[case]
    monkeypatch.setattr(cls, method, wrong(getattr(cls, method)))
    assert failed(audit(model_of(router), **({"shapes": shapes} if shapes else {}))) == probes


def peeks_late(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def scores(self: DepthRouted, x_BTD: Tensor, scores_BT: Tensor) -> Tensor:
        causal_BT = right(self, x_BTD, scores_BT)
        if not self.training and x_BTD.shape[1] > 120:
            causal_BT = causal_BT.clone()
            causal_BT[:, 100:120] = causal_BT[:, 101:121].clone()
        return causal_BT

    return scores


def computes_all(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: DepthRouted, x_BTD: Tensor, context: Context) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.block.feed_forward(x_BTD, context)
        return right(self, x_BTD, context)

    return forward


def threshold_of(mean: Callable[[Tensor], Tensor]) -> Wrong:
    """A threshold that follows another mean of the scores, too."""

    def wrong(right: Callable[..., Any]) -> Callable[..., Any]:
        def topk(self: DepthRouted, x_BTD: Tensor, scores_BT: Tensor, *rest: Any) -> Any:
            found = right(self, x_BTD, scores_BT, *rest)
            if self.training and self.threshold is not None:
                self.threshold.update(mean(scores_BT.detach()))
            return found

        return topk

    return wrong


@pytest.mark.parametrize(
    ("method", "wrong", "rule", "probes"),
    [
        ("_causal_scores", peeks_late, "ema_threshold", {3}),
        ("forward", computes_all, "predictor", {9, 11}),
        ("_topk", threshold_of(lambda scores_BT: scores_BT[0].mean()), "ema_threshold", {8}),
        ("_topk", threshold_of(lambda scores_BT: scores_BT.mean()), "ema_threshold", {8}),
    ],
    ids=["peeks late", "computes all", "threshold of the first", "threshold of padding"],
)
def test_a_trained_layer_wrong_in_one_mode_is_caught(
    method: str, wrong: Wrong, rule: str, probes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DepthRouted, method, wrong(getattr(DepthRouted, method)))
    model = warmed(SHAPE, "mod", {"causal": rule, "capacity": 0.4}, 0, 128)
    assert failed(list(findings(model, shapes=(*FUSED, (2, 128)), only=probes))) == probes


def test_not_a_number_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DepthRouted.forward
    monkeypatch.setattr(DepthRouted, "forward", lambda *given: right(*given) * torch.nan)
    found = {f.probe: f.figure for f in findings(model_of("mod"), only={1, 2, 5}) if f.failed}
    assert set(found) == {1, 2, 5}
    assert "NaN" in found[1]


def test_what_scores_with_a_memory_is_not_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Block.forward

    def wrong(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
        self.seen = getattr(self, "seen", 0) + 1
        return right(self, x_BTD, context) * (1 + self.seen / 100)

    monkeypatch.setattr(Block, "forward", wrong)
    (found,) = findings(model_of("vanilla"), only={1})
    assert found.failed
    assert found.ranks
    assert "two equal passes (topk) differ by" in found.figure


def test_a_router_that_raises_has_failed_and_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = given(lambda x: x.view(x.shape[0], -1, 64, SHAPE.width).flatten(1, 2))
    monkeypatch.setattr(Block, "forward", wrong(Block.forward))
    found = audit(model_of("vanilla"))
    assert failed(found) == {
        1,
        2,
        3,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
    }  # 4: it declares no counts, so nothing ran
    assert found[0].figure.startswith("could not run: RuntimeError: ")
    assert "at 3 x 63 tokens" in found[0].figure
    assert {finding.figure for finding in found if finding.failed} == {
        found[0].figure,
        "could not run, as probe 1",
    }
    assert leak_verdict(found) == "not audited"


def test_a_ledger_that_lies_only_at_the_training_batch_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would buy more steps."""
    wrong = fewer_flops(lambda w: (w.phase, w.sequences) == ("train", 5))
    monkeypatch.setattr(Block, "ledger", wrong(Block.ledger))
    for trained in ((6, 31), (5, 31)):
        found = findings(model_of("vanilla"), shapes=FUSED, trained=trained, only={9})
        assert failed(list(found)) == ({9} if trained == (5, 31) else set())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_raised_and_is_no_finding(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(*_: object) -> Tensor:
        raise error

    monkeypatch.setattr(Block, "forward", large)
    with pytest.raises(type(error)) as raised:
        audit(model_of("vanilla"))
    assert raised.value is error


def test_what_one_shape_shows_another_that_asks_nothing_does_not_undo() -> None:
    model = build_model(SHAPE, build_router("mod", {"scores": "stride", "capacity": 0.9}), seed=0)
    for shapes, verdict in ((((4, 2),), "not asked"), (((3, 63), (4, 2)), "passed")):
        found = findings(model, shapes=shapes, only={5, 11})
        assert {finding.verdict for finding in found} == {verdict}


def where(chosen: bool, change: Callable[[], Tensor]) -> Tensor | float:
    return change() if chosen else 0.0


def fused(tokens: int) -> Wrong:
    """A peek at the next token, at one length and without a cache."""
    return output(
        lambda y, x, c: (
            y
            + where(
                x.shape[1] == tokens and c.selection == "causal" and c.cache is None,
                lambda: x.roll(-1, 1),
            )
        )
    )


def at_first(x_BTD: Tensor) -> Tensor:
    return (torch.arange(x_BTD.shape[1]) == 0)[:, None]


#: What is added in the model's own dtype alone; the shape; the probe; words of the figure.
OWN_DTYPE: dict[str, tuple[Wrong, tuple[int, int], int, str]] = {
    "next token": (fused(63), (3, 63), 1, "no earlier logit changed (max "),
    "next token of many": (fused(256), (2, 256), 1, "in torch.float32, "),
    "last token at the first": (
        output(lambda y, x, c: y + where(x.shape[1] == 256, lambda: x[:, -1:] * at_first(x))),
        (2, 256), 1, "",
    ),
    "mean of the batch": (
        output(lambda y, x, c: y + where(c.cache is None, lambda: x.mean(0, keepdim=True))),
        (3, 63), 2, "in torch.float32 by",
    ),
    "mean of a batch without padding": (
        output(
            lambda y, x, c: (
                y + where(c.cache is None and c.lengths_B is None, lambda: x.mean(0, keepdim=True))
            )
        ),
        (3, 63), 2, "",
    ),
    "another decoding": (
        output(lambda y, x, c: y + where(c.cache is not None and x.shape[:2] == (3, 1), lambda: x)),
        (3, 63), 3, f"in torch.float32 only {3 * 16} decoded tokens",
    ),
}  # fmt: skip


def own(wrong: Wrong) -> Wrong:
    """In float32 and not in float64, with which the audit looks first."""

    def changed(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
            here = x_BTD.dtype == torch.float32 and not x_BTD.is_meta
            return (wrong(right) if here else right)(self, x_BTD, context)

        return forward

    return changed


@pytest.mark.parametrize("case", OWN_DTYPE)
def test_a_leak_in_the_models_own_dtype_is_seen(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, shape, probe, words = OWN_DTYPE[case]
    monkeypatch.setattr(Block, "forward", own(wrong)(Block.forward))
    (found,) = findings(model_of("vanilla", layers=1), shapes=(shape,), only={probe})
    assert found.failed
    assert words in found.figure


def test_a_token_that_rounding_tips_in_one_text_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes token 3 of one copy, and through attention later ones, where others are edited."""
    subject = Subject(model_of("vanilla", layers=1), 0)
    text_BT = subject.tokens(4, 63)
    right = Block.forward

    def forward(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
        tokens_BT = context.tokens_BT
        if x_BTD.dtype == torch.float32 and tokens_BT is not None and tokens_BT.shape == (8, 63):
            same = bool((tokens_BT[0, :4] == text_BT[0, :4]).all())
            tipped = same and not torch.equal(tokens_BT, text_BT[:1].expand(8, -1))
            x_BTD = x_BTD.clone()
            x_BTD[0, 3] *= 2.0 if tipped else 1.0
        return right(self, x_BTD, context)

    monkeypatch.setattr(Block, "forward", forward)
    passed, figure = causal(subject, text_BT)
    assert passed, figure
    assert "in torch.float32, 0 of" not in figure


def test_what_is_float64_itself_is_asked_once() -> None:
    found = findings(model_of("vanilla").double(), shapes=((2, 19),), only={1, 2, 3})
    assert not any("torch.float" in finding.figure for finding in found)


def doubled_from(place: int, dtype: torch.dtype, sequences: int) -> Wrong:
    """A decoded token from ``place`` on adds its input once more."""
    return output(
        lambda y, x, c: (
            y
            + where(
                x.dtype == dtype
                and c.cache is not None
                and x.shape[1] == 1
                and len(x) <= sequences
                and c.cache.read[-1] >= place,
                lambda: x,
            )
        )
    )


@pytest.mark.parametrize(
    ("place", "dtype", "sequences", "shape", "passes"),
    [
        (253, torch.float64, 1, (2, 250), True),
        (253, torch.float64, 1, (2, 256), False),  # one alone is decoded to the scored length
        (58, torch.float32, 9, (3, 63), True),  # in its own dtype rounding may change some tokens
        (48, torch.float32, 9, (3, 63), False),  # but not most
        (212, torch.float64, 1, (3, 63), False),  # and in float64 none at all
    ],
)
def test_decoding_that_is_right_for_long_is_decoded_to_the_end(
    place: int,
    dtype: torch.dtype,
    sequences: int,
    shape: tuple[int, int],
    passes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = doubled_from(place, dtype, sequences)
    monkeypatch.setattr(Block, "forward", wrong(Block.forward))
    subject = Subject(model_of("vanilla", layers=1))
    passed, figure = decode_parity(subject, subject.tokens(*shape))
    assert passed is passes, figure


def test_decoding_that_selects_all_is_told_from_a_model_that_does() -> None:
    class Barred(mutants.DecodeAlways):
        """Initial weights select some tokens; these select all."""

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            self.register_buffer("bar", torch.full((), 0.3))

        def likely(self, hints_BT: Tensor, context: Context) -> Tensor:
            return super().likely(hints_BT - self.bar + 0.3, context)

    model = mutants.model_of(Barred)
    model.layers[1].bar.fill_(-1e9)
    subject = Subject(model)
    passed, figure = decode_parity(subject, subject.tokens(3, 63))
    assert passed is False
    assert "with initial weights" in figure
