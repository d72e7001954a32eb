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
        ({"source": "text"}, "data path is missing"),
        (
            {"tokenizer": "bytes", "vocabulary": 512},
            "data vocabulary is 512, but tokenizer 'bytes' always has 257",
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
