"""A small corpus that cloze items can be made of."""

from pathlib import Path

import pytest
from made_up import made_up_text

from modbench.data.config import DataConfig
from modbench.data.token_data import prepare


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """The corpus, prepared in a cache of its own."""
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "made_up.txt"
    path.write_text(made_up_text(1500))
    config = DataConfig(source="text", path=str(path), tokenizer="bytes", heldout=0.3)
    prepare(config, say=lambda _: None)
    return config
