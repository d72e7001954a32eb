"""A dense model of transformers scored by our adapter and by lm-eval's own. To compare them on real
items, set MODBENCH_EVAL_DATA to a folder of --include-path with LAMBADA, ARC-easy and PIQA; -s prints
the scores."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from inline import own_routers
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.models.huggingface import HFLM
from local_tasks import request, rows_of, write_task, write_tasks
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
)

import modbench
from modbench.accounting.count import count
from modbench.errors import UserError
from modbench.evaluate.downstream import evaluate
from modbench.evaluate.hub_lm import load_hub_lm
from modbench.evaluate.loaded_lm import load_lm
from modbench.hf.retrofit.build import routers_of
from modbench.routing.registry import load_plugin

#: Folder of real items, in place of the made-up ones, and how many of each task are compared.
REAL, LIMIT = os.environ.get("MODBENCH_EVAL_DATA"), 200 if "MODBENCH_EVAL_DATA" in os.environ else None
LENGTH, VOCABULARY = (512, 2048) if REAL else (64, 300)


def byte_tokenizer(text: str, ids: int) -> PreTrainedTokenizerFast:
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=ids, show_progress=False, special_tokens=special, initial_alphabet=sorted(alphabet)
    )
    engine.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights, large enough that its scores differ between answers."""
    path = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    text = (tasks / "arc_easy_test.jsonl").read_text()
    byte_tokenizer(text, VOCABULARY - 10).save_pretrained(path)
    return path


@pytest.mark.parametrize("batch", ["auto", 3])
def test_scores_equal_those_of_lm_eval_s_own_adapter(folder, tasks, batch):
    ours = load_hub_lm(folder, batch=batch)
    # It sums in the model's type, and float32 is up to 2e-4 nats off at 2,000 nats.
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=2)
    assert ours.max_length == theirs.max_length == LENGTH
    names = ["lambada_openai", "arc_easy", "piqa", *(() if REAL else ("wikitext",))]
    include = Path(REAL) if REAL else tasks
    for evaluation in evaluate(ours, names, include=include, limit=LIMIT):
        score = evaluation.score(evaluation.name)
        answers = pairs(evaluation.tasks[evaluation.name])
        loaded = {"tasks": dict(evaluation.tasks)}
        again = lm_eval_evaluate(theirs, loaded, limit=LIMIT, bootstrap_iters=0)
        expected = pairs(evaluation.tasks[evaluation.name])
        off = max(abs(one[0] - two[0]) for one, two in zip(answers, expected, strict=True))
        print(f"{evaluation.name}: {score.items} items, {len(answers)} requests, {off:.1e} nats apart")
        assert off < 1e-4
        assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
        for metric, ours_of in score.metrics.items():
            value = again["results"][evaluation.name][f"{metric},none"]
            print(f"{evaluation.name} {metric}: {ours_of:.6g} and {value:.6g}")
            exact = metric.startswith("acc")
            assert ours_of == (value if exact else pytest.approx(value, rel=1e-4))
        assert any(answers[0] != answer for answer in answers)


def pairs(task):
    """(log-probability, greedy) of each request of ``task``; a rolling one has no greedy answer."""
    answers = [instance.resps[0] for instance in task.instances]
    return [one if isinstance(one, tuple) else (one, False) for one in answers]


def test_few_shot_prompts_are_those_of_lm_eval(folder, tasks, tmp_path):
    rows = rows_of(tasks, "arc_easy")
    write_task(tmp_path / "few", "arc_easy", rows[:4], rows[4:])
    [evaluation] = evaluate(load_hub_lm(folder), ["arc_easy"], include=tmp_path / "few", num_fewshot=2)
    prompt = evaluation.tasks["arc_easy"].instances[0].args[0]
    assert prompt.count("Question: ") == 3
    assert prompt.endswith(f"{rows[0]['question']}\nAnswer:")
    assert evaluation.score("arc_easy").few_shot == 2


def test_generation_is_that_of_transformers(folder):
    lm = load_hub_lm(folder)
    options = {"until": [], "max_gen_toks": 8}
    [text] = lm.generate_until([request("stone river", options, kind="generate_until")])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), lm.model
    inputs = tokenizer("stone river", return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert text == tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("batch", ["auto", 1, 3])
def test_generation_costs_its_prompts_and_new_tokens_up_to_their_ends(folder, batch):
    """In one pass over prompt and text, as much as in a pass of its own for each new token."""
    lm = load_hub_lm(folder, batch=batch)
    prompts = ["stone river", "lamp", "seven cold walks to a green market"]
    [whole] = lm.generate_until([request(prompts[0], {"max_gen_toks": 12}, kind="generate_until")])
    options = {"until": [whole[4:6]], "max_gen_toks": 12}
    lm.reset()
    texts = lm.generate_until([request(each, options, kind="generate_until") for each in prompts])
    assert texts[0] == whole[: whole.index(whole[4:6])]
    cost, lm = lm.cost, load_hub_lm(folder, batch=1)
    for prompt in prompts:
        lm.generate_until([request(prompt, options, kind="generate_until")])
    assert (cost.tokens, cost.nominal_flops) == (lm.cost.tokens, lm.cost.nominal_flops)
    assert cost.tokens < sum(len(lm.tok_encode(prompt)) + 11 for prompt in prompts)
    lm.reset()
    lm.generate_until([request("lamp", {"max_gen_toks": 12}, kind="generate_until")])
    read = len(lm.tok_encode("lamp")) + 11
    counted = count(lm.model, (1, read), phase="prefill").total_model
    assert (lm.cost.tokens, lm.cost.nominal_flops) == (read, counted + 11 * 2 * 32 * VOCABULARY)


def test_text_is_drawn_alike_each_time_and_from_no_global_generator(folder):
    lm, before = load_hub_lm(folder), torch.get_rng_state()
    asked = [request("stone", {"do_sample": True, "temperature": 2.0}, kind="generate_until")]
    assert lm.generate_until(asked) == lm.generate_until(asked)
    greedy = lm.generate_until([request("stone", {}, kind="generate_until")])
    assert greedy != lm.generate_until(asked)
    asked = [request("stone", {"do_sample": True}, kind="generate_until")]
    assert greedy == lm.generate_until(asked)
    assert torch.equal(torch.get_rng_state(), before)


def test_new_tokens_take_half_of_the_length_and_longer_prompts_are_truncated(folder):
    lm, options = load_hub_lm(folder), {"max_gen_toks": 10_000}
    [text, empty] = lm.generate_until(
        [request(each, options, kind="generate_until") for each in ("river " * LENGTH, "")]
    )
    assert text
    assert empty
    assert lm.truncated == 1
    assert lm.cost.tokens == LENGTH // 2 + 1 + 2 * (LENGTH // 2 - 1)


def test_an_empty_prompt_is_one_end_of_text_where_its_name_is_text(folder):
    """Folders that modbench exports take the characters of a special token as text."""
    lm = load_hub_lm(folder)
    asked = [request("", {"max_gen_toks": 4}, kind="generate_until")]
    expected = lm.generate_until(asked)
    lm.tokenizer.split_special_tokens = True
    assert lm.generate_until(asked) == expected
    assert lm.generate_until([*asked, request("a", {"max_gen_toks": 4}, kind="generate_until")])
    assert lm.cost.tokens == 4 * (1 + 3)


def test_scores_do_not_depend_on_other_requests_with_equal_inputs(folder):
    lm = load_hub_lm(folder)
    requests = [request("stone river", " green lamp"), request("stone river green", " lamp")]
    together = lm.loglikelihood(requests)
    assert together == [lm.loglikelihood([each])[0] for each in requests]


def test_a_continuation_longer_than_the_model_is_scored_in_full(folder):
    lm = load_hub_lm(folder)
    [(total, _)] = lm.loglikelihood([request("stone", " river" * LENGTH)])
    ids = torch.tensor(lm.tok_encode("stone" + " river" * LENGTH))
    context = len(lm.tok_encode("stone"))
    expected = 0.0
    for start in range(context, len(ids), LENGTH):
        end = min(start + LENGTH, len(ids))
        inputs = ids[max(0, end - LENGTH - 1) : end - 1]
        log_p_TV = lm.model(inputs[None]).logits[0].log_softmax(-1)[start - end :]
        expected += log_p_TV.gather(1, ids[start:end, None]).sum().item()
    assert total == pytest.approx(expected, abs=1e-3)
    assert lm.truncated == 1


def test_an_empty_continuation_is_named_and_an_empty_context_is_a_start(folder):
    lm = load_hub_lm(folder)
    with pytest.raises(UserError, match="item 3 of task 'made_up' has an empty continuation"):
        lm.loglikelihood([request("stone", "", item=3)])
    scores = lm.loglikelihood([request(context, "stone") for context in ("", "<s>")])
    assert scores[0] == scores[1]
    assert lm.loglikelihood([request(" ", "stone"), request("", " stone")]) == 2 * [
        lm.loglikelihood([request("<s>", " stone")])[0]
    ]


def test_a_package_that_is_missing_is_named(monkeypatch):
    for module in ("lm_eval.models.huggingface", "modbench.evaluate.hub_lm"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"needs accelerate; .* pip install '\.\[hf\]'"):
        importlib.import_module("modbench.evaluate.hub_lm")


PLUGIN = """from dataclasses import dataclass
from modbench import DepthRouter, register_router

@register_router("of_a_folder")
@dataclass(frozen=True, kw_only=True)
class OfAFolder(DepthRouter):
    capacity: float = 0.5
"""


def test_a_converted_model_with_a_router_of_a_plugin_needs_its_file(folder, tmp_path):
    file, converted = tmp_path / "of_a_folder.py", tmp_path / "converted"
    file.write_text(PLUGIN)
    with own_routers():
        load_plugin(file)
        model = modbench.retrofit(AutoModelForCausalLM.from_pretrained(folder), "of_a_folder")
        model.save_pretrained(converted)
    AutoTokenizer.from_pretrained(folder).save_pretrained(converted)
    with own_routers():
        with pytest.raises(UserError, match=r"converted: router 'of_a_folder' is not known.*--plugin"):
            load_lm(converted)
        lm = load_lm(converted, plugins=[file]).lm
        assert len(routers_of(lm.model)) == 1
        [(score, _)] = lm.loglikelihood([request("stone river", " lamp")])
        assert score < 0


def test_a_tokenizer_of_another_model_is_refused(folder, tasks, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    byte_tokenizer((tasks / "arc_easy_test.jsonl").read_text(), 320).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its tokenizer has 320 ids, but the model only 300"):
        load_hub_lm(tmp_path)


def test_flops_are_those_that_the_counter_sees(folder):
    """Of one request: all tokens but the last are read, and one row of logits is asked for."""
    lm = load_hub_lm(folder)
    lm.loglikelihood([request("stone river green", " lamp")])
    tokens = lm.cost.tokens
    counted = count(lm.model, (1, tokens), phase="prefill").total_model
    rows = len(lm.tok_encode("stone river green lamp")) - len(lm.tok_encode("stone river green"))
    logits = 2 * 32 * VOCABULARY * (rows - 1)
    assert lm.cost.nominal_flops == lm.cost.realised_flops == counted + logits
    assert lm.cost.per_token()["nominal_flops_per_token"] == (counted + logits) / tokens


def test_a_family_without_a_closed_form_has_no_flops(folder, tmp_path):
    config = PhiConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    PhiForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    lm = load_hub_lm(tmp_path)
    lm.loglikelihood([request("stone", " lamp")])
    assert lm.ledger is None
    assert lm.cost.per_token()["nominal_flops_per_token"] is None


def test_a_damaged_file_of_the_folder_is_named(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "a")
    right = (place / "config.json").read_text()

    def refused(name, content, said):
        (place / name).write_bytes(content)
        with pytest.raises(UserError, match=said):
            load_hub_lm(place)

    more = right.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    refused("config.json", b"{", "a/config.json can't be read")
    refused("config.json", more.encode(), "the weights in .*a lack .*9 tensors")
    (place / "config.json").write_text(right)
    refused("tokenizer.json", b"", "a has no tokenizer that transformers can load")
    refused("model.safetensors", b"1234", "a/model.safetensors is truncated or damaged")
