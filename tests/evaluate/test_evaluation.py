"""Evaluation of tasks by name: finding them, local files, standard errors, items, batch shift, files."""

import json
import math

import numpy as np
import pytest
import torch
from lm_eval.api.metrics import mean_stderr
from local_tasks import rows_of, write_tasks
from made_up import ByHand
from torch import nn

from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError
from modbench.evaluate.downstream import evaluate
from modbench.evaluate.downstream.evaluation import standard_error
from modbench.evaluate.downstream.files import ResultFiles
from modbench.evaluate.downstream.table import details
from modbench.evaluate.downstream.validity import batch_shift
from modbench.evaluate.routed_lm import RoutedLM

NAMES = ["lambada_openai", "arc_easy", "piqa", "wikitext"]


class Smooth(ByHand):
    """Logits that depend on the tokens so far; with ``leak``, on the other rows of the batch too."""

    def __init__(self, leak: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table_VV = nn.Parameter(torch.randn(257, 257, generator=generator))
        self.leak = leak

    def forward(self, tokens_BT, context):
        logits_BTV = self.table_VV[tokens_BT]
        return logits_BTV + self.leak * logits_BTV[:, :1].roll(1, -1) * len(tokens_BT)


@pytest.fixture
def tasks(tmp_path):
    return write_tasks(tmp_path / "data")


def model(leak: float = 0.0, rule: str = "causal") -> RoutedLM:
    return RoutedLM(Smooth(leak), Tokenizer(), sequence=128, rule=rule)


def test_a_group_and_its_member_are_refused_before_any_is_evaluated(tasks):
    with pytest.raises(UserError, match="'ai2_arc' contains 'arc_easy'"):
        next(evaluate(model(), ["arc_easy", "ai2_arc"], include=tasks))


def test_items_are_what_the_task_of_lm_eval_asks(tasks):
    found = {one.name: one.tasks[one.name] for one in evaluate(model(), NAMES, include=tasks, limit=2)}
    rows = {name: rows_of(tasks, name)[0] for name in NAMES}
    arc, piqa = rows["arc_easy"], rows["piqa"]
    asked = {name: [one.args for one in task.instances] for name, task in found.items()}
    prompt = f"Question: {arc['question']}\nAnswer:"
    assert asked["arc_easy"][:4] == [(prompt, f" {text}") for text in arc["choices"]["text"]]
    prompt = f"Question: {piqa['goal']}\nAnswer:"
    assert asked["piqa"][:2] == [(prompt, f" {piqa[name]}") for name in ("sol1", "sol2")]
    context, _, word = rows["lambada_openai"]["text"].rpartition(" ")
    assert asked["lambada_openai"][0] == (context, f" {word}")
    assert [len(asked[name]) for name in NAMES] == [2, 8, 4, 2]
    assert asked["wikitext"][0][-1].lstrip().startswith("= ")


def test_no_network_is_said_with_the_remedy(monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"could not be loaded .*give local files"):
        next(evaluate(model(), ["piqa"]))


def test_scores_and_errors_are_numbers_and_answers_agree_with_them(tasks):
    for evaluation in evaluate(model(), NAMES, include=tasks):
        score = evaluation.score(evaluation.name)
        assert all(isinstance(value, float) for value in score.metrics.values())
        assert all(isinstance(error, float) for error in score.errors.values())
        assert len(score.answers) == score.items == (3 if score.task == "wikitext" else 12)
        if "acc" in score.metrics:
            assert np.mean(score.answers.correct) == pytest.approx(score.metrics["acc"])
        if "bits_per_byte" in score.metrics:
            # lm-eval divides by the bytes before its detokenizer.
            assert all(size > 0 for size in score.answers.bytes)
            assert math.isnan(score.answers.correct[0])
        assert evaluation.cost.tokens > 0 < evaluation.cost.seconds


def test_margin_and_log_probability_are_those_of_the_right_choice(tasks):
    [evaluation] = evaluate(model(), ["arc_easy"], include=tasks, limit=3)
    answers = evaluation.score("arc_easy").answers
    instances = evaluation.tasks["arc_easy"].instances
    for item in range(3):
        totals = [one.resps[0][0] for one in instances[4 * item : 4 * item + 4]]
        right = item % 4
        wrong = [total for place, total in enumerate(totals) if place != right]
        assert answers.logprob[item] == totals[right]
        assert answers.margin[item] == totals[right] - max(wrong)
        assert answers.bytes[item] == len(instances[4 * item + right].args[1].encode())
        assert answers.choices[item] == 4


def test_a_single_item_has_no_standard_error(tasks):
    [evaluation] = evaluate(model(), ["piqa"], include=tasks, limit=1)
    assert evaluation.score("piqa").errors["acc"] is None


def test_standard_errors_have_closed_forms():
    rng = np.random.default_rng(0)
    values = rng.random(50).tolist()
    assert standard_error(values, float(np.mean(values))) == pytest.approx(mean_stderr(values))
    nats, weights = -rng.gamma(3.0, 20.0, 400), rng.integers(10, 60, 400)
    pairs = list(zip(nats.tolist(), weights.tolist(), strict=True))
    draws = rng.integers(0, 400, (2000, 400))
    rates = -nats[draws].sum(1) / weights[draws].sum(1)
    rate = -nats.sum() / weights.sum()
    assert standard_error(pairs, math.exp(rate)) == pytest.approx(np.exp(rates).std(), rel=0.1)
    bits = rate / math.log(2)
    assert standard_error(pairs, bits) == pytest.approx((rates / math.log(2)).std(), rel=0.1)
    assert standard_error(values, 0.123456) is None


def test_batch_shift_is_rounding_for_an_honest_model_and_large_for_a_leaking_one(tasks):
    for leak, bound in ((0.0, 1e-4), (0.1, None)):
        lm = model(leak)
        [evaluation] = evaluate(lm, ["arc_easy"], include=tasks)
        tokens = lm.cost.tokens
        shift = batch_shift(lm, evaluation.tasks)
        assert lm.cost.tokens == tokens
        assert shift.items == 12
        if bound is not None:
            assert shift.nats < bound
            assert shift.flipped == 0
        else:
            assert shift.nats > 0.1
            assert shift.flipped > 0


def test_result_and_sample_files_have_lm_eval_s_layout(tasks, tmp_path):
    lm = model()
    files = ResultFiles(tmp_path / "out", "tiny/mod", lm, limit=None)
    for evaluation in evaluate(lm, ["piqa", "arc_easy"], include=tasks):
        files.add(evaluation, details(evaluation, None, "passed"))
    [results] = (tmp_path / "out" / "tiny__mod").glob("results_*.json")
    written = json.loads(results.read_text())
    assert set(written["results"]) == {"piqa", "arc_easy"}
    assert isinstance(written["results"]["piqa"]["acc_stderr,none"], float)
    assert written["n-samples"]["piqa"] == {"original": 12, "effective": 12}
    assert written["configs"]["piqa"]["metadata"]["config_source"].endswith("piqa.yaml")
    date = results.stem.removeprefix("results_")
    samples = results.with_name(f"samples_arc_easy_{date}.jsonl").read_text().splitlines()
    assert len(samples) == 12
    assert set(json.loads(samples[0])["arguments"]) == {f"gen_args_{number}" for number in range(4)}
