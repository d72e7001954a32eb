"""Downstream scoring: all cloze items, next to one request at a time; the choices of an item from one
cached pass over its context, next to a pass for each; and the start of ``modbench eval``."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interleaved import InTurns
from lm_eval.api.instance import Instance
from local_tasks import write_task
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach
from trained_runs import add_records, record_of, save_trained

from modbench.data.config import DataConfig
from modbench.data.token_data import load
from modbench.data.tokenizer import Tokenizer
from modbench.evaluate.downstream import evaluate
from modbench.evaluate.routed_lm import RoutedLM
from modbench.evaluate.tasks.heldout import read_heldout
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router

#: About a million active parameters.
SHAPE = ModelConfig(vocabulary=2048, width=128, layers=4, heads=4)
SEQUENCE, DATA = 256, DataConfig()
ROUTERS = ("vanilla", "mod")
#: Items of a comparison in turns.
COMPARED = 100
#: Words of a question and of a choice, as often as in ARC-easy: quartiles 12, 17, 26 and 1, 3, 6.
QUESTION, CHOICE = (9, 12, 15, 17, 20, 26, 40), (1, 1, 2, 3, 4, 6, 8)


def model_of(router: str) -> RoutedDecoder:
    return build_model(SHAPE, build_router(router))


def warmed(model: RoutedDecoder, tokenizer: Tokenizer, requests: list[Instance]) -> RoutedLM:
    """The adapter after it has compared the cache with whole passes, which it does once."""
    lm = RoutedLM(model, tokenizer, sequence=SEQUENCE)
    lm.loglikelihood(requests)
    assert lm.reuses
    return lm


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(DATA).tokenizer


@pytest.fixture(scope="module")
def cloze(tokenizer: Tokenizer) -> list[Instance]:
    """The requests of the first cloze items."""
    lm = RoutedLM(model_of("vanilla"), tokenizer, sequence=SEQUENCE)
    [evaluation] = evaluate(lm, ["modbench_cloze"], data=DATA, limit=COMPARED)
    return list(evaluation.tasks["modbench_cloze"].instances)


@pytest.fixture(scope="module")
def arc_easy() -> list[Instance]:
    """The requests of made-up items of ARC-easy's lengths: held-out text, four choices."""
    rng, words = random.Random(0), " ".join(read_heldout(DATA).documents).split()

    def text(lengths: tuple[int, ...]) -> str:
        start = rng.randrange(len(words) - max(lengths))
        return " ".join(words[start : start + rng.choice(lengths)])

    requests = []
    for item in range(COMPARED):
        context = f"Question: {text(QUESTION)}?\nAnswer:"
        for number in range(4):
            asked = (context, f" {text(CHOICE)}")
            of_item = ("arc_easy", item, 1)
            requests.append(Instance("loglikelihood", {}, asked, idx=number, metadata=of_item))
    return requests


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.usefixtures("as_in_a_cell")
def test_all_cloze_items(
    router: str, tokenizer: Tokenizer, benchmark: BenchmarkFixture, reach: Reach
) -> None:
    lm, began = RoutedLM(model_of(router), tokenizer, sequence=SEQUENCE), time.process_time()

    def score() -> None:
        [evaluation] = evaluate(lm, ["modbench_cloze"], data=DATA)
        assert evaluation.scores[0].items == 2000

    benchmark.pedantic(score, rounds=1, iterations=1)
    what = f"2,000 cloze items, {router}"
    reach(what, benchmark.stats.stats.total, 60, "s")
    reach.shown(f"{what}, processor time", time.process_time() - began, "s")


@pytest.mark.parametrize("router", ROUTERS)
def test_batches_next_to_one_request_at_a_time(
    router: str, tokenizer: Tokenizer, cloze: list[Instance], in_turns: InTurns, reach: Reach
) -> None:
    model = model_of(router)
    lm = warmed(model, tokenizer, cloze)
    single = RoutedLM(model, tokenizer, sequence=SEQUENCE, batch=1, reuse=False)

    def one_at_a_time() -> None:
        for request in cloze:
            single.loglikelihood([request])

    turns = in_turns({"together": lambda: lm.loglikelihood(cloze), "one at a time": one_at_a_time})
    ratios = turns.ratios("one at a time", "together")
    reach.at_least(f"cloze items, speed-up over one request at a time, {router}", ratios, 3, "x")


@pytest.mark.parametrize("router", ROUTERS)
def test_choices_that_share_a_context(
    router: str, tokenizer: Tokenizer, arc_easy: list[Instance], in_turns: InTurns, reach: Reach
) -> None:
    model = model_of(router)
    warm = warmed(model, tokenizer, arc_easy)
    whole = RoutedLM(model, tokenizer, sequence=SEQUENCE, reuse=False)
    turns = in_turns(
        {
            "reuse": lambda: warm.loglikelihood(arc_easy),
            "whole": lambda: whole.loglikelihood(arc_easy),
        }
    )
    ratios = turns.ratios("whole", "reuse")
    reach.at_least(f"items like ARC-easy's, speed-up of a shared context, {router}", ratios, 1.5, "x")


def test_start(tmp_path: Path, benchmark: BenchmarkFixture, reach: Reach) -> None:
    """From the command to the scores of one item."""
    add_records(tmp_path / "my-results", record_of("mod", "mod", 0))
    save_trained(tmp_path / "my-results", "tiny/mod", merges=())
    write_task(tmp_path / "tasks", "piqa", [{"goal": "one", "sol1": "a", "sol2": "b", "label": 0}])
    words = "eval tiny/mod --tasks piqa --include-path tasks --no-validity"
    command = [sys.executable, "-m", "modbench", *words.split()]

    def start() -> None:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "piqa" in done.stdout

    start()  # reads the files once
    began, rounds = children_seconds(), 3
    benchmark.pedantic(start, rounds=rounds, iterations=1)
    what = "start of modbench eval, one item scored"
    reach(what, benchmark.stats.stats.median, 5, "s")
    reach.shown(f"{what}, processor time", (children_seconds() - began) / rounds, "s")


def children_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system
