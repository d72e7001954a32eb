"""Sections of the result of a measurement: routing on held-out text, and downstream tasks."""

import re
from collections.abc import Sized
from operator import gt
from typing import Annotated, Literal, NotRequired, Self

from annotated_types import Len
from pydantic import Field, model_validator, with_config
from typing_extensions import TypedDict

from modbench.records.line import OPEN, Count, Part, Positive, Real, matching

Rule = Literal["causal", "topk"]
Counts = list[Count]
Layer = Annotated[int, Field(ge=0, le=9999)]
#: One character per token: 1 if it is selected.
_Mask = Annotated[str, matching(re.compile("[01]+"), "a string of 0 and 1")]


class Weights(Part):
    """Histogram of the gates of all tokens and of the selected ones: bin ``i`` begins at
    ``(first + i) * 2**exponent``."""

    exponent: Annotated[int, Field(ge=-1000, le=1000)]
    first: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    all: Counts
    selected: Counts

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.all) != len(self.selected) or any(map(gt, self.selected, self.all)):
            raise ValueError(".selected must have one count per bin, none above that of all")
        if not any(self.all):
            raise ValueError(".all counts no token; leave the histogram out")
        return self


class DepthLayer(Part):
    """A layer that processes some tokens: ``routed``, the selected ones by position bin."""

    layer: int
    routed: Counts
    gates: Weights | None = None


class ExpertLayer(Part):
    """A layer of experts: ``load``, the tokens of each."""

    layer: int
    load: Annotated[Counts, Len(1)]


class RuleRouting(Part):
    """Routing under one selection rule."""

    depth: list[DepthLayer]
    experts: list[ExpertLayer]


class Selected(Part):
    """Tokens of the passage that a layer selects, and the gate of each under the causal rule."""

    layer: Layer
    selected: _Mask
    gates: list[Real] | None = None


class FirstChoice(Part):
    """First expert of each token of the passage under the causal rule; -1: no-op experts only."""

    layer: Layer
    first: list[Annotated[int, Field(ge=-1, le=10**6)]]


class Passage(Part):
    """Routing of the first tokens of the first window."""

    texts: Annotated[list[str], Len(1)]  #: text of each token; empty: end of text
    causal: list[Selected]
    topk: list[Selected]
    experts: list[FirstChoice]

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts: list[tuple[str, Sized | None]] = []
        for rule, layers in (("causal", self.causal), ("topk", self.topk)):
            for at, layer in enumerate(layers):
                parts += [
                    (f"{rule}[{at}].selected", layer.selected),
                    (f"{rule}[{at}].gates", layer.gates),
                ]
        parts += [(f"experts[{at}].first", layer.first) for at, layer in enumerate(self.experts)]
        for where, part in parts:
            if part is not None and len(part) != len(self.texts):
                raise ValueError(f".{where} has {len(part)} entries; not one per token")
        causal, topk = ([layer.layer for layer in rule] for rule in (self.causal, self.topk))
        if causal != topk or causal != sorted({*causal}):
            raise ValueError("it must list the same layers for both rules, in order")
        return self


class Routing(Part):
    """Raw counts on ``windows`` windows of ``sequence`` held-out tokens, each read without context."""

    windows: Positive
    sequence: Positive
    edges: Counts  #: edges of the position bins, in tokens
    passage: Passage | None = None
    causal: RuleRouting
    topk: RuleRouting

    def rule(self, rule: Rule) -> RuleRouting:
        """Routing under the causal rule, or under that of training, ``topk``."""
        return self.causal if rule == "causal" else self.topk

    @model_validator(mode="after")
    def _check(self) -> Self:
        edges = self.edges
        if len(edges) < 2 or edges != sorted({0, *edges, self.sequence}):
            raise ValueError(".edges must rise from 0 to the number of tokens of a window")
        for rule in ("causal", "topk"):
            for index, layer in enumerate(self.rule(rule).depth):
                if len(layer.routed) != len(edges) - 1:
                    where = f".{rule}.depth[{index}].routed"
                    raise ValueError(f"{where} has {len(layer.routed)} entries; not one per bin")
        return self


class RoutedLayer(Part):
    """Updates of a routed layer to the held-out tokens that it selects under the causal rule."""

    layer: Layer
    #: mean norm of its update over that of the residual stream; 0 without tokens
    added: Real | None = None
    gate_scale: Real | None = None  #: mean magnitude of the gate


#: Names of tasks and metrics; no match is a spreadsheet formula or HTML.
TASK_NAME = re.compile(r"\w[\w .,:;+%=()@*/|-]{0,199}")
_WORDS = "1 to 200 letters, digits, spaces and . , : ; + % = ( ) @ * / | - _, no sign in front"
TaskName = Annotated[str, matching(TASK_NAME, _WORDS)]
#: A number that is not known, or is NaN or infinite, is None.
_Known = Real | None


class Mean(Part):
    """Mean over items with its standard error."""

    value: _Known
    stderr: _Known
    untrained: _Known  #: of the model with random weights
    checkpoints: list[_Known] | None = None  #: values at the last checkpoints before the end


class TaskMetric(Mean):
    """A metric of the trained model."""

    chance: _Known
    higher_is_better: bool | None


class BatchShift(Part):
    """Largest difference of a log-probability between batch sizes, and items whose answer differs."""

    nats: _Known
    flipped: Count
    items: Count
    batches: Counts


class TaskScores(Part):
    """Scores on a task, or on a group of tasks."""

    part_of: TaskName  #: the name in the suite that it was evaluated for
    metrics: dict[TaskName, TaskMetric]
    items: Count
    few_shot: Count
    version: str
    rule: Literal["causal"]
    answer_bits_per_byte: Mean | None  #: of the right answer
    answer_margin: Mean | None  #: of the right answer over the best wrong one, nats
    truncated: Count  #: requests whose context did not fit the model's length
    batch_shift: BatchShift | None = None  #: on the first items; of a group's tasks together
    sha256: str | None  #: of the items' documents; None for a group
    #: of records until November 2026, as `by_item` and `missing`; nothing reads them
    tokens: Count | None = None
    seconds_per_token: Real | None = None
    nominal_flops_per_token: _Known = None
    realised_flops_per_token: _Known = None
    share_routed: _Known = None
    by_item: dict[Literal["correct", "bits_per_byte", "margin"], list[_Known]] | None = None
    missing: list[TaskName] | None = None


@with_config(OPEN)
class Settings(TypedDict):
    """Settings of a measurement that can alter its result: those of a task
    (`modbench.measure.config.MeasureConfig.task`), or others."""

    checkpoints: NotRequired[Count]
    data: NotRequired[str]
    fewshot: NotRequired[Count]
    include: NotRequired[str]
    limit: NotRequired[Count]
    task: NotRequired[str]
