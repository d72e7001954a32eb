import json
import re
from pathlib import Path

import pytest

from modbench.errors import UserError
from modbench.routing.build import meta_decoder
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Suite, find_suite, load_suite, shipped_suites
from modbench.sweep.tables import stated_comparisons
from modbench.sweep.wanted import expand
from modbench.train.config import TrainConfig
from modbench.train.counted import flops_per_step

GOOD = """
[suite]
name = "mine"
[model]
width = 32
layers = 2
heads = 4
[data]
tokenizer = "bytes"
[train]
batch = 4
[sweep]
budgets = [1e13, 20_000_000_000_000]
seeds = [0, 1]
[[schemes]]
router = "vanilla"
[[schemes]]
router = "mod"
label = "mod 25 %"
options = { capacity = 0.25 }
train = { learning_rate = 1e-3 }
"""


def parse(tmp_path: Path, text: str) -> Suite:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return load_suite(str(file))


def test_a_suite_is_read_with_whole_floats_as_budgets(tmp_path: Path) -> None:
    suite = parse(tmp_path, GOOD)
    assert suite.axes.budgets == (10**13, 2 * 10**13)
    assert suite.axes.seeds == (0, 1)
    assert [scheme.label for scheme in suite.schemes] == ["vanilla", "mod 25 %"]
    assert suite.schemes[1].options == {"capacity": 0.25}
    assert suite.schemes[1].train == {"learning_rate": 0.001}


@pytest.mark.parametrize(
    ("table", "row", "sentence"),
    [
        ("muon_learning_rate = 0.02", "", r"\[train\] has muon_learning_rate, and optimizer is 'adamw'"),
        ('optimizer = "moun"', "", r"\[train\] optimizer is 'moun'.*did you mean 'muon'"),
        ('optimizer = "muon"\nmuon_learning_rate = 0', "", r"\[train\] muon_learning_rate is 0"),
        ("", ", muon_learning_rate = 0.02", "'mod 25 %' train has muon_learning_rate, and optimizer is"),
    ],
)
def test_a_rate_of_muon_without_muon_is_refused(
    table: str, row: str, sentence: str, tmp_path: Path
) -> None:
    text = GOOD.replace("learning_rate = 1e-3", f"learning_rate = 1e-3{row}")
    with pytest.raises(UserError, match=sentence):
        parse(tmp_path, text.replace("[train]", f"[train]\n{table}"))


def test_a_row_goes_back_to_adamw_where_the_table_has_a_rate_of_muon(tmp_path: Path) -> None:
    muon = '[train]\noptimizer = "muon"\nmuon_learning_rate = 0.02'
    text = GOOD.replace("[train]", muon).replace("= 1e-3", '= 1e-3, optimizer = "adamw"')
    runs = {of.label: of.run for of in expand(resolve(parse(tmp_path, text)))}
    assert runs["vanilla"].as_json()["train"]["muon_learning_rate"] == 0.02
    assert not {"optimizer", "muon_learning_rate"} & {*runs["mod 25 %"].as_json()["train"]}


def test_the_vocabulary_follows_the_tokenizer(tmp_path: Path) -> None:
    assert parse(tmp_path, GOOD).stated[""]["vocabulary"] == 257
    bpe = GOOD.replace('tokenizer = "bytes"', "vocabulary = 512")
    assert parse(tmp_path, bpe).stated[""]["vocabulary"] == 512


def test_a_scheme_has_a_shape_of_its_own(tmp_path: Path) -> None:
    shallow = GOOD.replace('router = "vanilla"', 'router = "vanilla"\nmodel = { layers = 1 }')
    runs = [wanted.run for wanted in expand(resolve(parse(tmp_path, shallow)))]
    assert {(run.router.name, run.model.layers) for run in runs} == {
        ("vanilla", 1),
        ("mod", 2),
    }
    step = TrainConfig(batch=4)
    assert resolve(parse(tmp_path, shallow)).resolved["vanilla"].flops == (
        flops_per_step(meta_decoder("vanilla", {}, runs[0].model), step)
    )


@pytest.mark.parametrize(("stated", "mlp_width"), [("", 3 * 24), ("mlp_width = 40\n", 40)])
def test_a_width_of_its_own_sets_what_follows_from_it(
    tmp_path: Path, stated: str, mlp_width: int
) -> None:
    text = GOOD.replace("width = 32\n", f"width = 32\n{stated}")
    narrow = text.replace('router = "vanilla"', 'router = "vanilla"\nmodel = { width = 24, heads = 2 }')
    suite = parse(tmp_path, narrow)
    shape = suite.shape_of(suite.schemes[0])
    assert (shape.mlp_width, shape.kv_heads) == (mlp_width, 2)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("{ depth = 1 }", "'vanilla' model has no 'depth'"),
        ("{ vocabulary = 300 }", "'vanilla' model.*vocabulary"),
    ],
)
def test_a_wrong_shape_of_a_scheme_is_refused(tmp_path: Path, model: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse(tmp_path, GOOD.replace('router = "vanilla"', f'router = "vanilla"\nmodel = {model}'))


def test_each_size_is_a_row_that_is_compared_with_rows_of_its_size(tmp_path: Path) -> None:
    shapes = '[[shapes]]\nlabel = "small"\n[[shapes]]\nlabel = "wide"\nwidth = 64\n'
    suite = parse(tmp_path, GOOD + shapes)
    assert [(of.label, suite.shape_of(of).width) for of in suite.schemes] == [
        ("vanilla/small", 32),
        ("mod 25 %/small", 32),
        ("vanilla/wide", 64),
        ("mod 25 %/wide", 64),
    ]
    pair = '[[compare]]\na = "mod 25 %/small"\nb = "vanilla/{}"\n'
    assert len(parse(tmp_path, GOOD + shapes + pair.format("small")).comparisons) == 1
    with pytest.raises(UserError, match="rows of two sizes are in two tables"):
        parse(tmp_path, GOOD + shapes + pair.format("wide"))


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("[train]", "[trian]", "has no 'trian'; did you mean 'train'?"),
        ("batch = 4", "batch = 0", "[train] batch is 0; it should be greater than or equal to 1"),
        (
            "[train]",
            '[measure]\nsteps = ["helout"]\n[train]',
            "[measure] steps is ['helout']; it should be",
        ),
        ("heads = 4", "heads = 5", "[model]: model width 32 with 5 heads"),
        (
            "heads = 4",
            "vocabulary = 300",
            "[model] vocabulary is 300, but the tokenizer of [data] has 257",
        ),
        ("[1e13,", "[1.5,", "[sweep] budgets is [1.5, 20000000000000]; it should be"),
        ('label = "mod 25 %"', 'label = "<script>"', "[[schemes]]: label is '<script>'"),
        ("[train]", "[[shapes]]\nlabel = [1]\n[train]", "[[shapes]]: label is [1]; it must be"),
        ("options =", "option =", "[[schemes]] 2 has no 'option'; did you mean 'options'?"),
        ('name = "mine"', 'name = "../mine"', "[suite]: name is '../mine'; it becomes a folder's name"),
    ],
)
def test_a_mistake_gets_a_sentence_with_the_file_and_the_place(
    tmp_path: Path, before: str, after: str, sentence: str
) -> None:
    assert before in GOOD
    with pytest.raises(UserError) as error:
        parse(tmp_path, GOOD.replace(before, after))
    assert sentence in str(error.value)
    assert str(error.value).startswith(f"suite {tmp_path}/mine.toml")


def comparison(**keys: object) -> str:
    keys = {"a": "mod 25 %", "b": "vanilla", **keys}
    return "\n".join(
        ["[[compare]]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""]
    )


@pytest.mark.parametrize(
    ("compared", "sentence"),
    [
        (comparison(a="mod"), "[[compare]] 1 a is 'mod', which is no row"),
        (comparison(b="mod 25 %"), "[[compare]] 1 compares 'mod 25 %' with itself"),
        (comparison(budget=1e12), "[[compare]] 1 budget is 1e+12"),
        (
            comparison() + comparison(a="vanilla", b="mod 25 %", budget=1e13),
            "[[compare]] 2 compares 'vanilla' with 'mod 25 %' a second time",
        ),
    ],
)
def test_a_mistake_in_a_comparison_is_named(tmp_path: Path, compared: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        parse(tmp_path, GOOD + compared)


def test_a_comparison_that_no_run_can_decide_is_refused(tmp_path: Path) -> None:
    parse(tmp_path, GOOD + comparison())
    with pytest.raises(UserError, match="which share no seed"):
        parse(
            tmp_path,
            GOOD.replace('router = "vanilla"\n', 'router = "vanilla"\nseeds = [7, 8]\n') + comparison(),
        )


def test_a_comparison_holds_for_each_budget_unless_it_names_one(tmp_path: Path) -> None:
    text = comparison(margin=0.02) + comparison(a="vanilla", b="mod", budget=1e13, role="secondary")
    suite = parse(tmp_path, GOOD + '[[schemes]]\nrouter = "mod"\n' + text)
    first = {"a": "mod 25 %", "b": "vanilla", "role": "primary", "margin": 0.02}
    assert stated_comparisons(suite.comparisons, suite.axes.budgets) == [
        first | {"budget": 10**13},
        first | {"budget": 2 * 10**13},
        {"a": "vanilla", "b": "mod", "role": "secondary", "budget": 10**13},
    ]


def test_the_mark_that_some_editors_begin_with_is_none_of_the_suite(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_suite(str(tmp_path / "marked.toml")).header.name == "mine"


@pytest.mark.parametrize("depth", [300, 1000, 3000])
@pytest.mark.parametrize(
    "place", ["[suite{}]\n", "[a{}]\n", "[data]\nlist = {}"], ids=["inside", "of-its-own", "list"]
)
def test_tables_nested_deeply_are_refused_in_a_sentence(tmp_path: Path, place: str, depth: int) -> None:
    nested = "[" * depth + "]" * depth if "list" in place else ".a" * depth
    with pytest.raises(UserError, match=r"suite .*mine\.toml(: .* are nested too deeply| isn't TOML)"):
        parse(tmp_path, place.format(nested))


def test_an_unknown_suite_gets_the_nearest_match_or_its_missing_file() -> None:
    with pytest.raises(UserError, match="suite 'qiuck' is not known; did you mean 'quick'"):
        find_suite("qiuck")
    with pytest.raises(UserError, match=r"suite no/where\.toml: there is no such file"):
        find_suite("no/where.toml")


def test_a_shipped_suite_comes_before_a_file_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").write_text("not a suite")
    assert load_suite("quick").header.name == "quick"


@pytest.mark.parametrize("name", sorted(shipped_suites()))
def test_a_shipped_suite_is_valid_and_named_after_its_file(name: str) -> None:
    suite = load_suite(name)
    assert suite.header.name == name
    assert suite.header.description
