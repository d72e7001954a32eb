"""The command `modbench eval`, and lm-eval's own command line with our model."""

import json
import re
import sys
from pathlib import Path

import pytest
from local_tasks import rows_of, write_task
from trained_runs import RUNS, add_records, record_of, save_trained

from modbench.cli.main import main

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of small runs, one with weights, and items of piqa."""
    monkeypatch.chdir(tmp_path)
    add_records(tmp_path / "my-results", *(record_of(*run) for run in RUNS))
    save_trained(tmp_path / "my-results", "tiny/mod", merges=())
    rows = [
        {"goal": "so " * number + "it is", "sol1": "ab", "sol2": "bcd e", "label": number % 2}
        for number in range(6)
    ]
    write_task(tmp_path / "data", "piqa", rows)
    return tmp_path


def run(*words: str) -> int:
    return main(["eval", *words])


def test_a_run_is_scored_printed_and_written(place, capsys):
    code = run(
        "tiny/mod", "--tasks", "piqa", "--include-path", "data", "--out", "scores", "--limit", "4"
    )
    out, err = capsys.readouterr()
    assert code == 0
    assert re.search(r"^piqa +acc +0\.\d+ +0\.\d+ +0\.5000 +4 +0 +1\.0 +causal$", out, re.MULTILINE)
    assert "batch shift" in err
    assert "of tokens routed" in err
    assert "leak audit not audited" in err
    # Ten tokens are less than these items have.
    assert "was truncated on the left to the model's 10 tokens" in err
    [results] = (place / "scores" / "tiny__mod").glob("results_*.json")
    written = json.loads(results.read_text())["modbench"]["piqa"]
    assert written["realised_flops_per_token"] > 0
    assert written["batch_shift_flipped"] == 0


def test_the_training_rule_is_labelled(place, capsys):
    folder = str(next((place / "my-results" / "tiny" / "runs").iterdir()))
    words = ("--tasks", "piqa", "--include-path", "data", "--rule", "topk")
    words += ("--no-validity", "--out", "scores")
    assert run(folder, *words) == 0
    out, err = capsys.readouterr()
    [samples] = (place / "scores").glob("*/samples_piqa_*.jsonl")
    labels = [json.loads(line)["selection_rule"] for line in samples.read_text().splitlines()]
    assert labels == ["topk (non-causal)"] * 6
    assert out.count("topk (non-causal)") == 2
    assert "scored with topk (non-causal)" in err
    assert "batch shift" not in err


def test_a_task_without_examples_says_that_num_fewshot_is_not_used(place, capsys):
    words = ("--num-fewshot", "2", "--limit", "4", "--no-validity", "--include-path", "data")
    assert run("tiny/mod", "--tasks", "modbench_copy_16,piqa", *words) == 0
    out, err = capsys.readouterr()
    assert err.count("modbench_copy_16: --num-fewshot 2 is not used") == err.count("not used") == 1
    assert re.search(r"^piqa +acc .* 4 +2 +1\.0 +causal$", out, re.MULTILINE)


def test_what_lm_eval_warns_of_is_said_once(place, capsys):
    file = place / "data" / "piqa_validation.jsonl"
    stated = {
        "task": "odd",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
    }
    stated |= {"test_split": "test", "output_type": "multiple_choice", "doc_to_text": "goal"}
    stated |= {"doc_to_choice": "{{[sol1, sol2]}}", "doc_to_target": "neither"}
    (place / "data" / "odd.yaml").write_text(json.dumps(stated))
    assert run("tiny/mod", "--tasks", "odd", "--include-path", "data", "--no-validity") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "lm-eval warns" in line]
    assert len(said) == 1
    assert "Label index" in said[0]
    assert said[0].endswith("(6 times)")


def test_finished_tasks_are_printed_and_kept_when_a_later_one_fails(place, capsys):
    write_task(place / "data", "arc_easy", [{"question": "a"}])
    assert run("tiny/mod", "--tasks", "piqa,arc_easy", "--include-path", "data", "--out", "scores") == 2
    out, err = capsys.readouterr()
    assert "piqa" in out
    assert "task 'arc_easy'" in err.splitlines()[-1]
    assert list((place / "scores").rglob("results_*.json"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("tiny/mod", "eval needs --tasks"),
        ("tiny/mod --tasks piqaa", "task 'piqaa' is not known; did you mean 'piqa'"),
        ("tiny/mod --tasks piqa --device cuda:99", "device 'cuda:99' is not available"),
        ("tiny/vanilla --tasks piqa", "its weights"),
    ],
)
def test_a_mistake_gets_one_sentence(place, capsys, words, sentence):
    assert run(*words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("modbench: ")
    assert sentence in line


@pytest.mark.parametrize(
    "words",
    [
        *("sample llama --prompt a", "export llama --to hf --out out", "audit llama", "check llama"),
        *("time llama", "run llama"),
    ],
)
def test_a_hugging_face_folder_where_none_is_taken_is_one_sentence(place, capsys, words):
    (place / "llama").mkdir()
    (place / "llama" / "config.json").write_text('{"model_type": "llama"}')
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "llama" in line


def test_lm_eval_s_command_line_scores_a_run(place, monkeypatch, capsys):
    from modbench.cli.lm_eval import main as lm_eval_main

    (place / "tasks").mkdir()
    config = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "data" / "piqa_validation.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{goal}}",
        "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (place / "tasks" / "tiny.yaml").write_text(json.dumps(config))
    # Its own index takes a minute to build.
    from lm_eval.tasks.manager import TaskManager

    plain = TaskManager.__init__
    monkeypatch.setattr(
        TaskManager, "__init__", lambda self, *a, **k: plain(self, *a, **k | {"include_defaults": False})
    )
    words = (
        "lm_eval run --model modbench --model_args pretrained=my-results/tiny/mod --tasks tiny_choice"
    )
    monkeypatch.setattr(sys, "argv", [*words.split(), "--include_path", "tasks", "--output_path", "out"])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(place / "cache"))
    assert lm_eval_main() == 0
    assert re.search(r"\|tiny_choice\|.*\|acc ", capsys.readouterr().out)


def test_the_page_s_commands_and_code_run(place, monkeypatch, capsys):
    """The commands on piqa, with a small run for the one of the page."""
    page = DOCS.read_text()
    command = re.findall(
        r"^modbench (eval my-results/quick/mod --tasks lambada.*)$", page, re.MULTILINE
    )[0]
    write_task(place / "my-tasks", "piqa", rows_of(place / "data", "piqa"))
    words = command.replace("quick/mod", "tiny/mod").replace("lambada_openai,arc_easy,", "").split()
    assert main([*words, "--include-path", "my-tasks"]) == 0
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = (one.replace("quick/mod", "tiny/mod") for one in blocks if "sequence=256" in one)
    capsys.readouterr()
    exec(compile(code.replace("sequence=256", "sequence=10"), str(DOCS), "exec"), {})
    assert capsys.readouterr().out.startswith("0.")


def test_the_task_of_the_page_runs(place, capsys):
    section = DOCS.read_text().split("## Your own tasks")[1].split("\n## ")[0]
    ((_, task), (_, command)) = re.findall(r"```(yaml|sh)\n(.*?)```", section, re.DOTALL)
    (place / "my-tasks").mkdir()
    (place / "my-tasks" / "capitals.yaml").write_text(task)
    (place / "my-data").mkdir()
    item = {"country": "France", "cities": ["Paris", "Rome"], "answer": 0}
    (place / "my-data" / "items.jsonl").write_text(f"{json.dumps(item)}\n" * 2)
    assert main(command.replace("quick/mod", "tiny/mod").split()[1:]) == 0
    assert "capitals" in capsys.readouterr().out
