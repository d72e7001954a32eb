"""The audit catches each mutant with the right probe."""

import re

import pytest
from mutants import Depth
from subtle_mutants import MUTANTS

from modbench.audit import Finding, audit
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)

#: The probe that must catch a bug, and others that fail by its nature.
NAMED: dict[str, tuple[int, set[int]]] = {
    "double residual": (6, set()),
    "scaled stream": (6, set()),
    "top-k at evaluation": (1, {3}),
    "decode always": (3, set()),
    "decode never": (3, set()),
    # The cache keeps more keys than the trace counts.
    "cache mismatch": (3, {9}),
    # A single token is skipped, and the router gets no gradient.
    "k - 1": (4, {9}),
    "targets of sample 0 only": (8, set()),
    "loss of sample 0 only": (8, set()),
    "positions 0..k-1": (7, {3}),
    # The order is lost only in batches of one length without a cache.
    "order lost": (7, {1, 2, 3, 6}),
    # Under the causal rule a softmax depends on later tokens.
    "softmax over the selected": (8, {1, 2, 3, 6}),
    # Selected tokens attend to skipped ones, whose keys are cached.
    "masked but computed": (11, {3, 7, 9}),
    "schedule outside state_dict": (10, {9}),
    # The predictor learns it, too.
    "padding selected": (4, {8}),
    # Alone, other tokens are selected, so FLOPs of single sequences do not add up.
    "pool across sequences at evaluation": (2, {3, 9}),
    "ledger off by one matmul": (9, set()),
    "ledger of prefill forgets": (9, set()),
    "ledger of decode forgets": (9, set()),
    "ledger forgets the past": (9, set()),
    "ledger understates realised": (9, set()),
    "ledger understates batches": (9, set()),
    "ledger overstates realised": (9, set()),
    "ledger forgets nominal": (9, set()),
    "peeks in detail": (1, set()),
    "leak at place 37": (1, {3}),
    "decode selects all from 100": (3, set()),
    "decode differs alone": (3, {9}),
    "selects all of a chunk": (3, set()),
    "prompt scaled": (3, set()),
    "drifts at evaluation": (10, {1}),
    "scoring is counted": (10, {1}),
    "updates again when repeated": (10, set()),
    "schedule in the class": (10, set()),
    "loss of padding": (8, set()),
    # All probes that rely on the selection.
    "shows others": (5, {3, 4, 7}),
    "counts twice": (4, {9}),
    "ties go to the latest": (4, set()),
    "causal never": (4, set()),
    "causal always": (4, set()),
    "NaN where one is selected": (2, set()),
    "writes into its input": (5, set()),
    "double residual in place": (6, {5}),
    "forgets the prompt": (3, set()),
    "forgets an unpadded prompt": (3, {9}),
    "state of decoding on the module": (3, set()),
    "state of decoding not rewound": (3, set()),
    "drawn without the seed": (10, set()),
    "attention of its own": (10, set()),
    "half of the parameters active": (9, set()),
    "ledger of ungrouped heads": (9, set()),
}


def findings(bug: str) -> list[Finding]:
    return audit(build_model(SHAPE, Depth(bug=bug), seed=4))


def test_every_mutant_is_here() -> None:
    assert {*NAMED, "right"} == set(MUTANTS)


def test_the_router_that_mutants_differ_from_passes() -> None:
    assert [(f.probe, f.figure) for f in findings("right") if f.failed] == []


FIGURES = {
    "double residual": r"the update of layer 1 is not gate x block output \(relative error .*",
    "decode never": r", 48 decoded tokens differ by up to \d\.\de[+-]\d\d",
    "cache mismatch": r"layer 1 caches \[\d+, \d+, \d+\] keys of \[\d+, \d+, \d+\] selected tokens",
    "k - 1": r"layer 1 declares depth 1 and counts 0; one sequence, lengths 1 ",
    "padding selected": r"layer 1 declares depth 1, 1, 2 and selects 0, 0, 2; padded, lengths 1, 2, 7",
    "targets of sample 0 only": r"loss 'predictor' of layer 1 changes .* are reordered",
    "positions 0..k-1": r"of 48 selected tokens of layer 1 \(topk\) differ from the block in",
    "softmax over the selected": r"the router's gradient is \d\.\de-03 of a linear gate's$",
    "schedule outside state_dict": r"training changes layers\.1\.steps, which is not in state_dict$",
    "masked but computed": r"layer 1 spends 3\.94 times the FLOPs of the 48 of 189 tokens",
    "ledger off by one matmul": (
        r"ledger minus counter, FLOPs: -36,288 in a training step, .* and in 13 other cases"
    ),
    "ledger of prefill forgets": (
        r"FLOPs: -[\d,]+ in a prompt of one sequence, -[\d,]+ in a chunk of one sequence, "
        r"-[\d,]+ in a prompt of each sequence of a batch, and in 1 other case "
    ),
    "ledger of decode forgets": (
        r"FLOPs: -64 in a decoded token of one sequence, "
        r"-128 in a decoded token of each sequence of a batch "
    ),
    "ledger forgets the past": (
        r"FLOPs: -[\d,]+ in a chunk of one sequence, -[\d,]+ in a chunk of each sequence of a batch "
    ),
    "ledger understates realised": (
        r"FLOPs: -[\d,]+ in the realised FLOPs of a forward pass of one sequence"
    ),
    "ledger understates batches": r"FLOPs: -[\d,]+ in the realised FLOPs of a forward pass with padding",
    "ledger forgets nominal": (
        r"FLOPs: -[\d,]+ in the nominal FLOPs of a forward pass, "
        r"-[\d,]+ in the nominal FLOPs of a training step "
    ),
    "peeks in detail": r"^logits differ by \d\.\de[+-]\d\d where the trace is detailed ",
    "scoring is counted": r"^scoring \(topk\) changes layers\.1\.scored$",
    "drifts at evaluation": r"^scoring \(topk\) changes layers\.1\.average$",
    "updates again when repeated": r"^layers\.1\.average differs under activation checkpointing",
    "schedule in the class": r"^training changes class ScheduleInTheClass\.steps, which is not in",
    "loss of padding": r"^loss 'predictor' of layer 1 changes .* with the content of padding$",
    "ties go to the latest": r"^layer 1 selects the last of tokens with equal scores",
    "causal never": r"^the causal rule selects 0% of the tokens, whatever the weights",
    "causal always": r"^the causal rule selects 100% of the tokens, whatever the weights",
    "NaN where one is selected": r"^logits of 1 token contain NaN or Inf \(topk\)",
    "writes into its input": r"^layer 1 \(WritesIntoItsInput\) writes into its input \(topk\)$",
    "double residual in place": r"the update of layer 1 is not gate x block output .*",
    "leak at place 37": r"^logits at [1-3] earlier positions? changed \(max ",
    "decode selects all from 100": r"alone, chunks .*, \d+ decoded tokens differ by up to \d\.\de",
    "selects all of a chunk": r"^chunks differ by|keys of",
    "prompt scaled": r"^prompts differ by \d\.\de[+-]\d\d, 48 decoded tokens differ by .*e-1\d,",
    "forgets an unpadded prompt": r"; alone, prompts differ by",
    "forgets the prompt": r"^prompts differ by",
    "drawn without the seed": r"^layers\.1\.\w+ differs between two models of the same seed; draw it",
    "attention of its own": r"^layers\.1\.block\.attention\.\w+\.weight starts unlike the dense",
    "half of the parameters active": r"^layer 1 reports [\d,]+ active parameters; the FLOPs of a token",
    "ledger of ungrouped heads": r"\(at 2 x 19 tokens, grouped-query attention, GELU MLP\)",
    "ledger overstates realised": (
        r"FLOPs: \+[\d,]+ in the realised FLOPs of a training step with padding "
    ),
}


@pytest.mark.parametrize("bug", NAMED)
def test_the_right_probe_names_the_bug_and_says_where_and_how_much(bug: str) -> None:
    named, besides = NAMED[bug]
    failed = {finding.probe: finding.figure for finding in findings(bug) if finding.failed}
    assert set(failed) == {named, *besides}
    assert re.search(FIGURES.get(bug, ""), failed[named]), failed[named]
