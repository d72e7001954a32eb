import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import modbench
from modbench.cli.main import VERBS, main
from modbench.model.block import Block

SUITE = """
[suite]
name = "tiny"
[model]
width = 32
layers = 2
heads = 4
[data]
source = "text"
path = "text.txt"
tokenizer = "bytes"
[train]
sequence = 32
batch = 2
[sweep]
budgets = [1e9]
[[schemes]]
router = "vanilla"
"""


def modbench_command(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """`python -m modbench ARGUMENTS`, as a user would type it in ``cwd``."""
    environment = {
        **os.environ,
        "MODBENCH_CACHE": str(cwd / "cache"),
        "PYTHONPATH": str(Path(modbench.__file__).parent.parent),
    }
    command = [sys.executable, "-m", "modbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60)


def files_below(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with a suite, a text, and plugins and suites that are wrong."""
    for name, content in {
        "tiny.toml": SUITE,
        "text.txt": "All happy families are alike. " * 400,
        "raises.py": "1 / 0",
        "syntax.py": "def",
        "empty.py": "",
        "typo.toml": SUITE.replace("[train]", "[trian]"),
        "router.toml": SUITE.replace('"vanilla"', '"vanila"'),
        "option.toml": SUITE + "options = { capacty = 1 }",
        "metric.toml": SUITE.replace('"tiny"', '"tiny"\nrank_by = "heldout_los"'),
        "twins.toml": SUITE + '[[schemes]]\nrouter = "vanilla"\n',
        "escape.toml": SUITE.replace('"tiny"', '"../tiny"'),
        "broke.toml": SUITE.replace("1e9", "1000"),
        "gone.toml": SUITE.replace("text.txt", "gone.txt"),
        "image.toml": "\x89PNG",
        "bert.json": '{"model_type": "bert"}',
        "odd.json": '{"model_type": "llama", "num_attention_heads": 7}',
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "corrupt" / "tiny" / "records").mkdir(parents=True)
    (tmp_path / "corrupt" / "tiny" / "records" / "a.jsonl").write_text("{}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run tyni.toml", "suite tyni.toml: there is no such file"),
        ("run quikc", "suite 'quikc' is not known; did you mean 'quick'?"),
        ("run typo.toml", "suite typo.toml: there is no table [trian]; did you mean 'train'?"),
        ("run image.toml", "suite image.toml isn't TOML"),
        ("run metric.toml", "metric 'heldout_los' is not known; did you mean 'heldout_loss'?"),
        ("run twins.toml", "two have the label 'vanilla'"),
        ("run escape.toml", "name is '../tiny'; it becomes a folder's name"),
        ("run router.toml", "router 'vanila' is not known; did you mean 'vanilla'?"),
        ("run option.toml", "router 'vanilla' has no option 'capacty'"),
        ("run broke.toml", "[sweep] budgets: budget 1000 is smaller than one training step"),
        ("run gone.toml", "gone.txt"),
        ("run tiny.toml --results text.txt", "the results folder text.txt/tiny can't be written"),
        ("run tiny.toml --results corrupt", "corrupt/tiny/records/a.jsonl, line 1: no valid record"),
        ("run tiny.toml --plugin raises.py", "plugin raises.py raised ZeroDivisionError"),
        ("run tiny.toml --plugin syntax.py", "plugin syntax.py raised SyntaxError"),
        ("run tiny.toml --plugin empty.py", "plugin empty.py registers no router"),
        ("run tiny.toml --plugin gone.py", "plugin gone.py: there is no such file"),
        ("run tiny.toml --only mod", "no row of the suite is called 'mod'"),
        ("run tiny.toml --workers -1", "--workers is -1"),
        ("report", "results folder results holds no records"),
        ("report tinny --results corrupt", "has no suite 'tinny'; did you mean 'tiny'?"),
        ("report --results corrupt", "corrupt/tiny/records/a.jsonl, line 1: no valid record"),
        ("cell gone.json", "cell gone.json can't be read"),
        ("cell text.txt", "cell text.txt can't be read"),
        ("cell", "cell takes one spec file"),
        ("data prepare --source text --path gone.txt --tokenizer bytes", "gone.txt"),
        ("data prepare --tokenizer bytes --vocabulary 300", "data vocabulary is 300"),
        ("flops --router mid", "router 'mid' is not known; did you mean 'mod'?"),
        ("flops --router mod --option capacity", "--option capacity: it must be NAME=VALUE"),
        (
            "flops --router mod --option capacity=0.5 every=1 capacity=0.25",
            "--option capacity is given twice, as 0.5 and as 0.25; give it once",
        ),
        ("flops --router mod --option capcity=0.5", "no option 'capcity'; did you mean 'capacity'?"),
        ("flops --router mod --width 30", "model width 30 is no multiple of the head width 32"),
        ("flops --router mod --heads 7", "model width 128 with 7 heads: heads must divide"),
        ("flops --router mod --kv-heads 3", "model kv_heads is 3 with 4 heads"),
        ("flops --router mod --size 12M", "size '12M' is not known; did you mean '124M'?"),
        ("flops --router mod --phase trian", "phase 'trian' is not known; did you mean 'train'?"),
        ("flops --router mod --convention palmm", "convention 'palmm' is not known; did you mean"),
        ("flops --router mod --convention palm --profile", "convention 'palm' is a formula"),
        ("flops --router mod:hlaf", "router 'mod' has no preset 'hlaf'; did you mean 'half'?"),
        ("flops --router mod --hf text.txt", "was given --router and --hf"),
        ("flops", "flops takes one of --router, --hf and --suite"),
        ("flops --suite tiny.toml --option capacity=1", "--option capacity=1 belongs to --router"),
        ("flops --router mod --phase train --past 4", "nothing is cached in phase 'train'"),
        ("flops --router mod --batch 0", "batch is 0; it must lie between 1 and 1,000,000"),
        ("flops --router mod --sequence 0", "sequence is 0; it must lie between 1 and 10,000,000"),
        (f"flops --router mod --batch {10**30}", f"batch is {10**30}; it must lie between 1 and"),
        (f"flops --router mod --past {10**30}", f"past is {10**30}; it must lie between 0 and"),
        (f"audit mod --layers {10**30}", f"model layers is {10**30}; it must lie between 1 and"),
        (f"audit mod --sequence {10**30}", f"sequence is {10**30}; it must lie between 1 and"),
        ("flops --hf gone.json", "config gone.json can't be read"),
        ("flops --hf text.txt", "config text.txt is no JSON"),
        ("flops --hf bert.json", "model_type 'bert' is no causal language model"),
        ("flops --hf odd.json", "must divide"),
        ("plan --router mod", "plan needs --tokens, such as 300B, or --budget"),
        ("flops --hf bert.json --width 8", "--width belongs to --router, and --hf has its own shape"),
        (
            "flops --suite tiny.toml --sequence 17",
            "--sequence belongs to --router and --hf, and --suite",
        ),
        ("flops --suite tiny.toml --batch 2", "--batch belongs to --router and --hf, and --suite has"),
        ("plan --router mod --budget 1e40", "plans go up to 1e+30"),
        ("plan --router mod --tokens many", "tokens 'many' is not a number"),
        ("plan --router mdo --tokens 1B", "router 'mdo' is not known; did you mean 'mod'?"),
        (
            "plan --router mod --tokens 1B --gpu h1000",
            "GPU 'h1000' is not known; did you mean 'h100'? known",
        ),
        ("plan --router mod --tokens 1B --utilisation 2", "--utilisation is 2.0"),
        ("plan --router mod --tokens 1B --gpus 8 --shard 3", "--shard is 3 of 8 gpus"),
        ("plan --router mod --budget 1", "the budget is too small for 'mod'"),
        ("sample tiny/mod --prompt hi", "run 'tiny/mod' must be SUITE/LABEL"),
        ("", "Expected one of"),
        ("rnu quick", "'rnu' is no command of modbench; did you mean 'run'? known: audit, data"),
        ("run tiny.toml --wrokers 2", "Unrecognized options: --wrokers"),
        ("run tiny.toml --workers two", "two"),
        ("list router", "invalid choice 'router'; did you mean 'routers'? known: all, metrics, rout"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2_and_changes_nothing(
    place: Path,
    arguments: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MODBENCH_CACHE", str(place / "cache"))
    corrupt = files_below(place / "corrupt")
    assert main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("modbench: ")
    assert sentence in line
    kept = {name: text for name, text in files_below(place / "corrupt").items() if ".lock" not in name}
    assert kept == corrupt
    assert not list(place.rglob("spec.json"))


@pytest.mark.parametrize(
    "arguments",
    ["run typo.toml", "run tiny.toml --plugin raises.py", "report --results corrupt", "rnu quick"],
)
def test_python_m_modbench_ends_with_that_sentence_and_that_code(place: Path, arguments: str) -> None:
    done = modbench_command(*arguments.split(), cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("modbench: ")


def test_help_loads_no_torch_pandas_or_numpy_and_shows_an_example_of_every_verb(place: Path) -> None:
    code = (
        "import sys; from modbench.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print({'torch', 'pandas', 'numpy', 'seaborn', 'lm_eval'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=place)
    assert done.stdout.splitlines()[-1] == "set()"
    assert done.stdout.count("Example: modbench ") == len(VERBS)


@pytest.mark.parametrize("verb", [*sorted(set(VERBS) - {"data"}), "data prepare"])
def test_each_verbs_help_has_an_example_of_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*verb.split(), "--help"])
    assert end.value.code == 0
    assert f"Example: modbench {verb}" in capsys.readouterr().out


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"modbench {modbench.__version__}\n"


def test_list_names_routers_suites_and_metrics_without_torch(place: Path) -> None:
    code = (
        "import sys; from modbench.cli.main import main; main(['list'])\n"
        "print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=place)
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert {"routers", "mod", "mode_staged", "suites", "quick", "metrics", "heldout_loss"} <= set(lines)
    assert lines[-1] == "set()"


def test_list_names_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "suites"]) == 0
    words = capsys.readouterr().out
    assert "quick" in words
    assert "heldout_loss" not in words


def test_flops_takes_options_as_toml(capsys: pytest.CaptureFixture[str]) -> None:
    totals = []
    for capacity in ("0.125", "0.5"):
        assert main(["flops", "--router", "mod", "--option", f"capacity={capacity}"]) == 0
        totals.append(capsys.readouterr().out)
    assert totals[0] != totals[1]


@pytest.mark.parametrize("source", ["--router mod vanilla", "--hf config.json", "--suite tiny.toml"])
def test_flops_gives_one_json_document_on_the_last_line(
    source: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (place / "config.json").write_text('{"model_type": "mixtral", "num_hidden_layers": 2}')
    words = f"flops {source} --phase train --profile --compare-conventions --format json"
    assert main(words.split()) == 0
    (*_, last) = capsys.readouterr().out.splitlines()
    for model in json.loads(last)["models"]:
        assert model["profiled"] == model["flops"] == model["conventions"]["model"]
        assert model["flops"] == sum(part["flops"] for part in model["by_component"].values())
        assert model["flops_per_token"] * model["sequences"] * model["tokens"] == model["flops"]
        assert len(model["conventions"]) == 9
        assert 0 < model["active_parameters"] <= model["parameters"]
        assert model["ratio_to_dense"] == model["flops"] / model["dense_flops"]


def test_a_counter_that_sees_something_else_is_told_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Block.ledger
    monkeypatch.setattr(Block, "ledger", lambda self, load: right(self, load) * 2)
    assert main(["flops", "--router", "vanilla", "--profile"]) == 1
    assert "vanilla: the closed form says" in capsys.readouterr().err


@pytest.mark.parametrize("phase", ["forward", "prefill", "decode"])
def test_a_chunk_after_cached_tokens_is_counted_as_its_closed_form_says(
    phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"flops --router vanilla mod mode_staged --profile --past 7 --sequence 5 --phase {phase}"
    assert main(words.split()) == 0
    assert capsys.readouterr().out.count("difference +0") == 3


def test_a_key_that_looks_like_another_is_remarked_upon(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "typo.json").write_text('{"model_type": "llama", "hiden_size": 64}')
    assert main(["flops", "--hf", str(place / "typo.json")]) == 0
    assert "key 'hiden_size' is not read; did you mean 'hidden_size'?" in capsys.readouterr().err


def test_flops_csv_has_a_row_for_each_component_and_the_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "flops --router mod --phase decode --past 9 --sequence 4 --format csv"
    assert main(words.split()) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    parts = [int(row["flops"]) for row in rows if row["component"] != "total"]
    (total,) = (row for row in rows if row["component"] == "total")
    assert int(total["flops"]) == sum(parts)
    assert (total["phase"], total["past"], total["tokens"]) == ("decode", "9", "4")
    assert float(total["ratio_to_dense"]) < 1


def test_a_closed_form_of_a_known_family_loads_no_torch(place: Path) -> None:
    (place / "config.json").write_text('{"model_type": "llama"}')
    code = (
        "import sys; from modbench.cli.main import main; main(['flops', '--hf', 'config.json']); "
        "print(sorted({'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=place, env=environment
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_plan_speaks_of_equal_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --router vanilla mod --size 1M --budget 1e15 --gpus 2 --format json"
    assert main(words.split()) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["budget"] == 10**15
    for scheme in plan["schemes"]:
        assert 0.99 * 10**15 < scheme["training_flops"] <= 10**15
        assert scheme["memory"]["total"] > 0
        seconds = scheme["days"] * 86_400
        assert seconds == pytest.approx(scheme["training_flops"] / (2 * 989.4e12 * 0.4))


def test_a_cell_that_cannot_find_its_plugin_says_so_with_exit_code_2(place: Path) -> None:
    spec = {"suite": {}, "cell": {}, "plugins": ["gone.py"], "results": "r", "folder": "f", "threads": 1}
    (place / "spec.json").write_text(json.dumps(spec))
    done = modbench_command("cell", "spec.json", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("modbench: plugin gone.py: there is no such file")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run quick", "stopped; what was recorded is kept, run the same command again to go on\n"),
        ("audit mod", "stopped\n"),
        ("sample quick/mod --prompt And", "stopped\n"),
        ("flops --router mod", "stopped\n"),
        ("plan --router mod --tokens 1B", "stopped\n"),
    ],
)
def test_only_what_can_go_on_says_so_when_it_is_stopped(
    command: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    for backend in (
        "modbench.sweep.run.run_suite",
        "modbench.measure.audit.command.run_audit",
        "modbench.sweep.sample.sample_run",
        "modbench.cli.flops.router_statement",
        "modbench.plan.plan.plan",
    ):
        monkeypatch.setattr(backend, stop)
    assert main(command.split()) == 130
    assert capsys.readouterr().err == f"modbench: {says}"


def test_a_reader_that_leaves_early_is_no_traceback(place: Path) -> None:
    command = f"{sys.executable} -m modbench list | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)}
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=place, env=environment, timeout=60
    )
    assert (done.stdout, done.stderr) == ("routers\n", "")


def test_a_terminal_without_a_letter_gets_its_number(place: Path) -> None:
    code = (
        "import sys, modbench.sweep.sample; from modbench.cli.main import main\n"
        "modbench.sweep.sample.sample_run = lambda *_, **__: ['caf\\xe9 \\ufffd']\n"
        "sys.exit(main(['sample', 'a/b', '--prompt', 'x']))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(modbench.__file__).parent.parent),
        "PYTHONIOENCODING": "ascii",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=place, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9 \\ufffd\n", "")


def test_a_mistake_is_one_sentence_in_ascii_too(place: Path) -> None:
    said = []
    for encoding in ("utf-8", "ascii"):
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(modbench.__file__).parent.parent),
            "PYTHONIOENCODING": encoding,
        }
        command = [sys.executable, "-m", "modbench", "flops", "--router", "mod", "--batch", "1.5"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment)
        said.append((done.returncode, done.stderr))
    assert said[0] == said[1]
    assert said[0][0] == 2
    assert said[0][1] == "modbench: --batch is '1.5'; it must be a whole number\n"
