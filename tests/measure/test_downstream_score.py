"""Cloze through lm-eval itself, with an oracle and a model that knows nothing.

B sequences, T tokens, V vocabulary.
"""

import random
import statistics
from dataclasses import asdict

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from torch import Tensor, nn

from modbench.data.token_data import load
from modbench.errors import UserError
from modbench.measure import downstream
from modbench.measure.downstream import RoutedLM, chance, score
from modbench.measure.tasks import CHANCE, FOLDER
from modbench.measure.tasks.modbench_cloze.items import items
from modbench.model.context import Context

V = 257


class Uniform(nn.Module):
    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        return torch.zeros(*tokens_BT.shape, V)


class Oracle(nn.Module):
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
            for item in items(made_up)
        ]
    )


def test_an_oracle_is_always_right_and_who_knows_nothing_guesses(made_up, oracle):
    tokenizer = load(made_up).tokenizer
    knowing = score(oracle, tokenizer, tasks=["modbench_cloze"], data=made_up)
    assert knowing["modbench_cloze"] == 1.0
    assert knowing["modbench_cloze_stderr"] == 0.0
    assert knowing["modbench_cloze_items"] == len(items(made_up)) >= 100
    guessing = score(Uniform(), tokenizer, tasks=["modbench_cloze"], data=made_up)
    # All choices score the same, and lm-eval then takes the first: right once in four.
    assert guessing["modbench_cloze"] == pytest.approx(chance("modbench_cloze"), abs=0.01)
    spread = statistics.stdev([1.0] * 25 + [0.0] * 75)
    error = spread / len(items(made_up)) ** 0.5
    assert guessing["modbench_cloze_stderr"] == pytest.approx(error, rel=0.02)


def test_the_task_runs_in_lm_eval_s_own_evaluation_from_any_folder(
    made_up, oracle, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    manager = TaskManager(
        include_path=FOLDER, include_defaults=False, metadata={"data": asdict(made_up)}
    )
    lm = RoutedLM(oracle, load(made_up).tokenizer)
    results = simple_evaluate(lm, tasks=["modbench_cloze"], task_manager=manager, bootstrap_iters=0)
    assert results["results"]["modbench_cloze"]["acc,none"] == 1.0
    [first] = [sample for sample in results["samples"]["modbench_cloze"] if sample["doc_id"] == 0]
    item = items(made_up)[0]
    assert [tuple(asked) for asked in first["arguments"]] == [
        (item["context"], f" {choice}") for choice in item["choices"]
    ]


def test_a_limit_takes_the_first_items(made_up):
    scores = score(Uniform(), load(made_up).tokenizer, tasks=["modbench_cloze"], data=made_up, limit=7)
    first = [item["answer"] == 0 for item in items(made_up)[:7]]
    assert scores["modbench_cloze"] == pytest.approx(sum(first) / 7)
    assert scores["modbench_cloze_items"] == 7


def test_scoring_draws_from_no_global_generator(made_up):
    before = random.getstate(), torch.get_rng_state()
    score(Uniform(), load(made_up).tokenizer, tasks=["modbench_cloze"], data=made_up, limit=4)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_no_task_costs_nothing():
    assert score(Uniform(), None, tasks=[]) == {}


@pytest.mark.parametrize("name", ["modbench_close", "modbench_blimp", "mod_bench_cloze"])
def test_a_misspelt_task_of_ours_is_named_before_anything_is_loaded(name, monkeypatch):
    monkeypatch.setattr(downstream, "TaskManager", None)
    with pytest.raises(UserError, match=f"task '{name}' is not known; .*known: modbench_cloze"):
        score(Uniform(), None, tasks=[name])


class OtherTasks:
    """lm-eval's index, whose tasks can't be downloaded."""

    def __init__(self, include_path, include_defaults, metadata):
        assert include_defaults
        self.task_index = self.all_tasks = ["lambada_openai", "modbench_cloze"]

    def load(self, tasks):
        raise ConnectionError("Couldn't reach the Hub\nand a long story")


def test_a_task_that_nobody_knows_is_refused_with_the_nearest(monkeypatch):
    monkeypatch.setattr(downstream, "TaskManager", OtherTasks)
    with pytest.raises(UserError, match=r"nor to lm-eval; did you mean 'lambada_openai'\? `lm-eval ls"):
        score(Uniform(), None, tasks=["lambada_openia"])


def test_a_download_that_fails_is_one_sentence(monkeypatch):
    monkeypatch.setattr(downstream, "TaskManager", OtherTasks)
    with pytest.raises(UserError) as caught:
        score(Uniform(), None, tasks=["lambada_openai"])
    assert str(caught.value) == (
        "task 'lambada_openai': lm-eval could not load it (ConnectionError: Couldn't reach the Hub); "
        "check the network, or that its data is in the Hugging Face cache"
    )


def test_each_task_of_ours_has_a_chance_level_and_others_are_refused():
    manager = TaskManager(include_path=FOLDER, include_defaults=False)
    assert set(manager.all_tasks) == set(CHANCE)
    with pytest.raises(UserError, match="task 'lambada_openai' has no known chance level"):
        chance("lambada_openai")


def test_figures_of_groups_and_other_metrics_are_read_as_lm_eval_writes_them():
    results = {
        "results": {
            "perplexed": {"alias": "perplexed", "perplexity,none": 9.0, "perplexity_stderr,none": "N/A"},
            "both": {"perplexity,none": 9.0, "acc,none": 0.5, "acc_stderr,none": "N/A"},
            "group": {"alias": "group", " ": " "},
        },
        "n-samples": {"both": {"original": 9, "effective": 5}},
    }
    assert downstream._flat("perplexed", results) == {"perplexed": 9.0}
    assert downstream._flat("both", results) == {"both": 0.5, "both_items": 5.0, "both_stderr": 0.25}
    assert downstream._flat("group", results) == {}
