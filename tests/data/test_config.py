"""DataConfig refuses what would be a misunderstanding, in one sentence."""

import pytest

from modbench.data.config import DataConfig
from modbench.errors import UserError


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"path": "a.txt"},
            "data path is 'a.txt', but source 'pypi-en-v1' has no such setting; "
            "remove it, or set source = 'text'",
        ),
        (
            {"source": "text", "path": "a.txt", "documents": 7},
            "data documents is 7, but source 'text' has no such setting",
        ),
        ({"source": "text"}, "data path is missing"),
        ({"source": "huggingface"}, "data name is missing"),
        ({"vocabulary": 257}, "data vocabulary is 257; a bpe has from 258"),
        ({"vocabulary": 65537}, "data vocabulary is 65537"),
        (
            {"tokenizer": "bytes", "vocabulary": 512},
            "data vocabulary is 512, but tokenizer 'bytes' always has 257",
        ),
        (
            {"source": "text", "path": "a.txt", "heldout": 1.0},
            "data heldout is 1.0; it must lie between 0 and 1",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value)),
)
def test_wrong_settings_are_named_with_the_remedy(settings, sentence):
    with pytest.raises(UserError) as caught:
        DataConfig(**settings)
    assert sentence in str(caught.value)


def test_bytes_resolve_the_vocabulary():
    assert DataConfig(tokenizer="bytes").vocabulary == 257
    assert DataConfig(tokenizer="bytes", vocabulary=257) == DataConfig(tokenizer="bytes")


def test_settings_are_those_that_the_source_reads():
    assert DataConfig().settings() == {"source": "pypi-en-v1", "tokenizer": "bpe", "vocabulary": 2048}
    assert set(DataConfig(source="text", path="a.txt").settings()) == {
        *("source", "tokenizer", "vocabulary", "path", "text_field", "heldout")
    }
