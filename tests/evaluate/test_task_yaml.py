"""The YAML files, as lm-eval runs them: metrics per item, groups, and the user's own text."""

import math
import warnings
from dataclasses import asdict

import pytest
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from modbench.evaluate.tasks import FOLDER, TASKS
from modbench.evaluate.tasks.build import items_of_task


class Taste(LM):
    """Likes short choices, and the answers in ``known`` more; gives text a bit per byte."""

    def __init__(self, known=()):
        super().__init__()
        self.known = set(known)

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(5.0 * (one.args in self.known) - len(one.args[1]), False) for one in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        return [-math.log(2) * len(one.args[-1].encode()) for one in requests]

    def generate_until(self, requests, disable_tqdm=False):
        raise NotImplementedError


@pytest.fixture
def manager(made_up) -> TaskManager:
    return TaskManager(include_path=FOLDER, include_defaults=False, metadata={"data": asdict(made_up)})


def run(manager, tasks, model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(model, manager.load(tasks), bootstrap_iters=0, **options)


def right(items):
    return {(item["context"], f" {item['choices'][item['answer']]}") for item in items}


def test_the_files_and_the_table_of_tasks_agree(manager):
    assert set(manager.all_tasks) == set(TASKS)
    for name, info in TASKS.items():
        loaded = manager.load([name])["tasks"]
        assert set(loaded) == set(info.members or (name,))
        for member, task in loaded.items():
            assert task.config.metadata["version"] == TASKS[member].version


def test_each_item_has_accuracy_bits_per_byte_and_margin(manager, made_up):
    items = items_of_task("modbench_cloze", made_up)
    found = run(manager, ["modbench_cloze"], Taste(right(items)), log_samples=True)
    (sample, *_), (item, *_) = found["samples"]["modbench_cloze"], items
    length = len(item["choices"][item["answer"]]) + 1  # with the space
    assert sample["acc"] == 1
    assert sample["bits_per_byte_answer"] == pytest.approx((length - 5) / math.log(2) / length)
    assert sample["margin"] == pytest.approx(5)  # made-up words are equally long
    scores = found["results"]["modbench_cloze"]
    assert scores["acc,none"] == scores["acc_centred,none"] == 1
    assert scores["margin,none"] == pytest.approx(5)
    assert len(found["samples"]["modbench_cloze"]) == len(items)


def test_a_taste_for_some_sentences_hides_what_centring_shows(manager, made_up):
    items = items_of_task("modbench_continuation", made_up)
    likes = Taste(right(items))
    likes.loglikelihood = lambda requests, **_: [
        (0.5 * (one.args in likes.known) + 9.0 * hash_of(one.args[1]), False) for one in requests
    ]
    scores = run(manager, ["modbench_continuation"], likes)["results"]["modbench_continuation"]
    assert scores["acc,none"] < 0.5
    assert scores["acc_centred,none"] == 1


def hash_of(text: str) -> float:
    return sum(map(ord, text)) * 0.618 % 1


def test_a_group_has_the_mean_of_its_tasks_and_a_limit_keeps_the_first_items(manager):
    results = run(manager, ["modbench_probes"], Taste(), limit=8)["results"]
    members = TASKS["modbench_probes"].members
    assert results["modbench_probes"]["acc,none"] == pytest.approx(
        sum(results[name]["acc,none"] for name in members) / len(members)
    )
    for name in members:
        assert results[name]["acc,none"] == 0.25  # two whole quartets


def test_documents_are_scored_in_bits_per_byte(manager):
    results = run(manager, ["modbench_bits_per_byte"], Taste())["results"]
    assert results["modbench_bits_per_byte"]["bits_per_byte,none"] == pytest.approx(1.0)
