"""The section ``downstream`` of a measurement's result: scores of lm-eval's tasks by name.

A task of a group or tag states its name as ``part_of``, as does the group itself, which has no items of
its own; compute is then that of all of its tasks together.
"""

import re
from typing import Any, Literal

from modbench.records.line import COUNT, COUNTS, REAL, at_least, closed, list_of, matching, optional

#: Names of tasks and metrics; no match is a spreadsheet formula or HTML.
TASK_NAME = re.compile(r"\w[\w .,:;+%=()@*/|-]{0,199}")
_NAME: Any = matching(
    TASK_NAME, "1 to 200 letters, digits, spaces and . , : ; + % = ( ) @ * / | - _, no sign in front"
)
_NUMBER: Any = REAL | None
_NUMBERS: Any = list_of[_NUMBER]

#: A metric of the trained model. A number that is not known, or is NaN or infinite, is null.
_METRIC: Any = closed(
    value=_NUMBER,
    stderr=_NUMBER,  #: over items
    chance=_NUMBER,
    untrained=_NUMBER,  #: value of the same model before training
    checkpoints=optional[_NUMBERS],  #: values at the last checkpoints before the end
    higher_is_better=bool | None,
)
#: Mean over items with its standard error.
_MEAN = closed(value=_NUMBER, stderr=_NUMBER, untrained=_NUMBER, checkpoints=optional[_NUMBERS])
#: Largest difference of a log-probability between batch sizes, and items whose answer differs.
_SHIFT = closed(nats=_NUMBER, flipped=COUNT, items=COUNT, batches=COUNTS)
#: Scores of single items, in the order of the documents.
_ITEMS = closed(correct=_NUMBERS, bits_per_byte=_NUMBERS, margin=_NUMBERS)
_TASK: Any = closed(
    part_of=_NAME,  #: the name in the suite that it was evaluated for
    metrics=dict[_NAME, _METRIC],
    items=COUNT,
    few_shot=COUNT,
    version=str,
    rule=Literal["causal"],
    answer_bits_per_byte=_MEAN | None,  #: of the right answer
    answer_margin=_MEAN | None,  #: of the right answer over the best wrong one, nats
    truncated=COUNT,  #: requests whose context did not fit the model's length
    tokens=COUNT,  #: evaluated tokens
    seconds_per_token=REAL,
    nominal_flops_per_token=_NUMBER,
    realised_flops_per_token=_NUMBER,
    share_routed=_NUMBER,
    batch_shift=optional[_SHIFT],  #: on the first items; of a group's tasks together
    sha256=str | None,  #: of the items' documents; null for a group
    by_item=optional[_ITEMS | None],  #: null for a group
    missing=optional[list_of[_NAME]],  #: tasks of a group that were left out
)
#: Settings of a measurement: those of a task (`modbench.measure.config.MeasureConfig.task`), or others.
_OF_TASK = {
    **dict.fromkeys(("data", "include"), optional[str]),
    **dict.fromkeys(("limit", "fewshot", "checkpoints"), optional[COUNT]),
}
SETTINGS: Any = at_least(task=optional[str], **_OF_TASK)
TASKS: Any = list_of[at_least(task=str, **_OF_TASK)]
DOWNSTREAM: Any = dict[_NAME, _TASK]
