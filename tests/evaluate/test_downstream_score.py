"""Cloze scored by lm-eval, with an oracle and a uniform model.

B sequences, T tokens, V vocabulary.
"""

import json
import random
import re
import statistics

import pytest
import torch
from made_up import ByHand
from torch import Tensor

from modbench.data.token_data import load
from modbench.evaluate.downstream import TaskScore, evaluate
from modbench.evaluate.downstream.files import ResultFiles
from modbench.evaluate.downstream.table import as_table, details
from modbench.evaluate.routed_lm import RoutedLM
from modbench.evaluate.tasks import TASKS
from modbench.evaluate.tasks.build import items_of_task
from modbench.model.context import Context

V = 257


class Uniform(ByHand):
    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        return torch.zeros(*tokens_BT.shape, V)


class Oracle(ByHand):
    """Knows each item's text: what follows each of its beginnings."""

    def __init__(self, texts: list[list[int]]) -> None:
        super().__init__()
        self.next = {tuple(text[:end]): text[end] for text in texts for end in range(1, len(text))}

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        logits_BTV = torch.zeros(*tokens_BT.shape, V)
        for row, tokens in enumerate(tokens_BT.tolist()):
            for end in range(1, len(tokens) + 1):
                if (token := self.next.get(tuple(tokens[:end]))) is not None:
                    logits_BTV[row, end - 1, token] = 5.0
        return logits_BTV


@pytest.fixture
def oracle(made_up):
    tokenizer = load(made_up).tokenizer
    return Oracle(
        [
            tokenizer.encode(f"{item['context']} {item['choices'][item['answer']]}")
            for item in items_of_task("modbench_cloze", made_up)
        ]
    )


def cloze(model, data, limit=None) -> TaskScore:
    lm = RoutedLM(model, load(data).tokenizer)
    [evaluation] = evaluate(lm, ["modbench_cloze"], data=data, limit=limit)
    return evaluation.score("modbench_cloze")


def test_an_oracle_is_always_right_and_a_uniform_model_guesses(made_up, oracle):
    knowing = cloze(oracle, made_up)
    assert knowing.metrics["acc"] == 1.0
    assert knowing.errors["acc"] == 0.0
    assert knowing.items == len(items_of_task("modbench_cloze", made_up)) >= 100
    guessing = cloze(Uniform(), made_up)
    # All choices score the same, and lm-eval then takes the first: right once in four.
    assert guessing.metrics["acc"] == pytest.approx(TASKS["modbench_cloze"].chance, abs=0.01)
    spread = statistics.stdev([1.0] * 25 + [0.0] * 75)
    error = spread / len(items_of_task("modbench_cloze", made_up)) ** 0.5
    assert guessing.errors["acc"] == pytest.approx(error, rel=0.02)


def test_a_metric_without_a_complete_quartet_is_null_in_the_results(made_up, tmp_path):
    lm = RoutedLM(Uniform(), load(made_up).tokenizer)
    files = ResultFiles(tmp_path / "out", "tiny/mod", lm, limit=3)
    [evaluation] = evaluate(lm, ["modbench_cloze"], data=made_up, limit=3)
    files.add(evaluation, details(evaluation, None, "passed"))
    written = json.loads(files.path.read_text(), parse_constant=pytest.fail)
    assert written["results"]["modbench_cloze"]["acc_centred,none"] is None
    assert re.search(r"^modbench_cloze +acc_centred +- +- ", as_table([evaluation]), re.MULTILINE)


def test_scoring_draws_from_no_global_generator(made_up):
    before = random.getstate(), torch.get_rng_state()
    cloze(Uniform(), made_up, limit=4)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
