"""The audit names the right probe for each known bug."""

import re

import pytest
from mutants import Depth
from subtle_mutants import MUTANTS

from modbench.measure.audit import Finding, audit
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)

#: The probe that must name a bug, and those that fail besides: by its nature a bug may show elsewhere.
NAMED: dict[str, tuple[int, set[int]]] = {
    "double residual": (6, set()),
    "scaled stream": (6, set()),
    "top-k at evaluation": (1, {3}),
    "decode always": (3, set()),
    "decode never": (3, set()),
    # What is kept is not what the trace counted as entering.
    "cache mismatch": (3, {9}),
    # A single token stays out, and hands the router no gradient.
    "k - 1": (4, {9}),
    "targets of sample 0 only": (8, set()),
    "loss of sample 0 only": (8, set()),
    "positions 0..k-1": (7, {3}),
    # A batch of one length loses the order, a padded one of the mutant and one with a cache keep it.
    "order lost": (7, {2, 3, 6}),
    # Under the causal rule a softmax knows later tokens.
    "softmax over the selected": (8, {1, 2, 3, 6}),
    # The selected attend to the skipped, and leave their keys; what nobody enters isn't counted.
    "masked but computed": (11, {3, 7, 9}),
    "schedule outside state_dict": (10, set()),
    # It is a target of the predictor's, too.
    "padding selected": (4, {8}),
    # Alone, others enter, so that the parts don't add up.
    "pool across strangers at evaluation": (2, {3, 9}),
    "ledger off by one matmul": (9, set()),
    "ledger of prefill forgets": (9, set()),
    "ledger of decode forgets": (9, set()),
    "ledger forgets the past": (9, set()),
    "ledger understates realised": (9, set()),
    "ledger understates strangers": (9, set()),
    "ledger overstates realised": (9, set()),
    "ledger forgets nominal": (9, set()),
    "peeks in detail": (1, set()),
    "leak at place 37": (1, {3}),
    "decode tires at 100": (3, set()),
    "decode differs alone": (3, {9}),
    "chunk enters whole": (3, set()),
    "prompt scaled": (3, set()),
    "drifts at evaluation": (10, {1}),
    "scoring is counted": (10, {1}),
    "moves again when repeated": (10, set()),
    "schedule in the class": (10, set()),
    "schedule in the file": (10, set()),
    "padding teaches": (8, set()),
    # Whatever is held against those that are shown.
    "shows others": (5, {3, 4, 7}),
    "counts twice": (4, {9}),
    "ties go to the latest": (4, set()),
    "causal never": (4, set()),
    "causal always": (4, set()),
    "no number where one enters": (2, set()),
    # What it adds to a token in place is its block's.
    "writes into its input": (5, set()),
    "double residual in place": (6, {5}),
}


def findings(bug: str) -> list[Finding]:
    return audit(build_model(SHAPE, Depth(bug=bug), seed=4))


def test_every_mutant_is_here() -> None:
    assert {*NAMED, "right"} == set(MUTANTS)


def test_the_router_that_mutants_differ_from_passes() -> None:
    assert [(f.probe, f.figure) for f in findings("right") if f.failed] == []


@pytest.mark.parametrize("bug", NAMED)
def test_the_right_probe_names(bug: str) -> None:
    named, besides = NAMED[bug]
    failed = {finding.probe for finding in findings(bug) if finding.failed}
    assert failed == {named, *besides}


FIGURES = {
    "double residual": r"of what layer 1 adds is not its block's \(at 3 x 63 tokens\)",
    "decode never": r"48 tokens one by one differ by \d\.\de[+-]\d\d at most",
    "cache mismatch": r"layer 1 keeps \[\d+, \d+, \d+\] keys of \[\d+, \d+, \d+\] tokens that entered",
    "k - 1": r"layer 1 promises depth 1, and it is 0; one sequence, lengths 1 ",
    "padding selected": r"layer 1 promises depth 1, 1, 2 and selects 0, 1, 2; padded, lengths 2, 4, 7",
    "targets of sample 0 only": r"loss 'predictor' of layer 1 is .* when sequences change places",
    "positions 0..k-1": r"of 48 selected tokens of layer 1 \(topk\) are not what their order",
    "softmax over the selected": r"the router's gradient is \d\.\de-03 of a linear gate's$",
    "schedule outside state_dict": r"training moves layers\.1\.steps, which is not in state_dict$",
    "masked but computed": r"layer 1 spends 3\.94 times what the 48 of 189 tokens cost that it selects",
    "ledger off by one matmul": r"ledger minus counter, FLOPs: -12096 in topk forward",
    "ledger of prefill forgets": r"FLOPs: -\d+ in lone prompt, -\d+ in lone chunk, .*, -\d+ in chunk ",
    "ledger of decode forgets": r"FLOPs: -64 in lone decoded token, -192 in decoded token ",
    "ledger forgets the past": r"FLOPs: -\d+ in lone chunk, -\d+ in chunk ",
    "ledger understates realised": r"FLOPs: -\d+ in lone causal forward without padding",
    "ledger understates strangers": r"-\d+ in padded causal forward, summed, without padding",
    "ledger forgets nominal": r"FLOPs: -\d+ in nominal forward, -\d+ in nominal train ",
    "peeks in detail": r"^logits differ by \d\.\de[+-]\d\d where the trace is detailed ",
    "scoring is counted": r"^scoring \(topk\) moves layers\.1\.scored$",
    "drifts at evaluation": r"^scoring \(topk\) moves layers\.1\.average$",
    "moves again when repeated": r"^layers\.1\.average moves otherwise where layers are run again",
    "schedule in the class": r"^training moves class ScheduleInTheClass\.steps, which is not in",
    "schedule in the file": r"^training moves global subtle_mutants\.SCHEDULE, which is not in",
    "padding teaches": r"^the auxiliary losses of layer 1 are .* with other padding$",
    "ties go to the latest": r"^of equal scores layer 1 lets in the latest, and not the earliest",
    "causal never": r"^the causal rule lets in 0%, whatever the weights and the text",
    "causal always": r"^the causal rule lets in 100%, whatever the weights and the text",
    "no number where one enters": r"^logits of 1 tokens are no numbers \(topk\)",
    "writes into its input": r"^layer 1 \(WritesIntoItsInput\) writes into its input \(topk\) ",
    "double residual in place": r"of what layer 1 adds is not its block's \(at 3 x 63 tokens\)",
    "leak at place 37": r"^[1-3] earlier positions moved, by",
    "decode tires at 100": r"of one sequence 200 tokens one by one differ by \d\.\de[+-]\d\d at most",
    "chunk enters whole": r"^chunks differ by|keys of",
    "prompt scaled": r"^prompts differ by \d\.\de[+-]\d\d, 48 tokens one by one differ by \d\.\de-1\d ",
    "ledger overstates realised": r"FLOPs: \+\d+ in padded topk train without padding ",
}


@pytest.mark.parametrize("bug", FIGURES)
def test_the_figure_says_where_and_how_much(bug: str) -> None:
    (figure,) = [f.figure for f in findings(bug) if f.probe == NAMED[bug][0]]
    assert re.search(FIGURES[bug], figure), figure
