"""Leaks in the model's own dtype only are found, and rounding there is no leak.

B sequences, T tokens, D model width.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modbench.audit import Finding, audit
from modbench.audit.finding import Subject
from modbench.audit.leaks import causal
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=1, heads=4, mlp_width=64)
Change = Callable[[Tensor, Context], Tensor]


def failures(
    change: Change, monkeypatch: pytest.MonkeyPatch, shapes: tuple[tuple[int, int], ...]
) -> list[Finding]:
    """Of a dense model whose only block adds ``change`` to its result, in float32."""
    right = Block.forward

    def forward(self: Block, x_BTD: Tensor, context: Context) -> Tensor:
        y_BTD = right(self, x_BTD, context)
        own = x_BTD.dtype == torch.float32 and not x_BTD.is_meta
        return y_BTD + change(x_BTD, context) if own else y_BTD

    monkeypatch.setattr(Block, "forward", forward)
    model = build_model(SHAPE, build_router("vanilla"), seed=4)
    return [finding for finding in audit(model, shapes=shapes) if finding.failed]


def where(chosen: bool, change: Callable[[], Tensor]) -> Tensor:
    return change() if chosen else torch.zeros(())


@pytest.mark.parametrize(
    "shape",
    [(3, 63), (2, 256)],
    ids=lambda shape: f"{shape[0]}x{shape[1]}",
)
def test_a_peek_at_the_next_token_is_seen_at_any_length(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def peek(x_BTD: Tensor, context: Context) -> Tensor:
        fused = x_BTD.shape[1] == shape[1] and context.selection == "causal" and context.cache is None
        return where(fused, lambda: x_BTD.roll(-1, 1))

    found = failures(peek, monkeypatch, (shape,))
    (leak,) = [finding for finding in found if finding.probe == 1]
    assert leak.figure.startswith("no earlier logit changed (max ")
    told = leak.figure.split("in torch.float32, ")[1].split(" edits")[0]
    before, of = map(int, told.split(" of "))
    assert before > 0.9 * of  # a token may be changed to itself


def test_what_the_first_token_knows_of_the_last_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def last(x_BTD: Tensor, context: Context) -> Tensor:
        first_T1 = (torch.arange(x_BTD.shape[1]) == 0)[:, None]
        return where(x_BTD.shape[1] == 256, lambda: x_BTD[:, -1:] * first_T1)

    assert 1 in {finding.probe for finding in failures(last, monkeypatch, ((2, 256),))}


def test_a_dependence_on_batch_mean_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def batch_mean(x_BTD: Tensor, context: Context) -> Tensor:
        return where(context.cache is None, lambda: x_BTD.mean(0, keepdim=True))

    found = {finding.probe: finding.figure for finding in failures(batch_mean, monkeypatch, ((3, 63),))}
    assert "differ by" in found[2]
    assert "in torch.float32 by" in found[2]


def test_a_dependence_on_the_batch_without_padding_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def batch_mean(x_BTD: Tensor, context: Context) -> Tensor:
        full = context.cache is None and context.lengths_B is None
        return where(full, lambda: x_BTD.mean(0, keepdim=True))

    assert 2 in {finding.probe for finding in failures(batch_mean, monkeypatch, ((3, 63),))}


def test_a_decoding_that_is_another_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(x_BTD: Tensor, context: Context) -> Tensor:
        one = context.cache is not None and x_BTD.shape[:2] == (3, 1)
        return where(one, lambda: x_BTD)

    (finding,) = failures(decoded, monkeypatch, ((3, 63),))
    assert finding.probe == 3
    assert f"in torch.float32 only {3 * 16} decoded tokens" in finding.figure


def test_a_token_that_rounding_tips_in_one_text_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes token 3 of one copy, and through attention later ones, where others are edited."""
    model = build_model(SHAPE, build_router("vanilla"), seed=4)
    subject = Subject(model, 0)
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
    assert "in torch.float32, " in figure
    assert "in torch.float32, 0 of" not in figure


def test_what_is_float64_itself_is_asked_once() -> None:
    model = build_model(SHAPE, build_router("vanilla"), seed=4).double()
    figures = {finding.probe: finding.figure for finding in audit(model, shapes=((2, 19),))}
    assert all("torch.float" not in figures[probe] for probe in (1, 2, 3))
