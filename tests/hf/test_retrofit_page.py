"""The Python blocks of docs/hugging_face.md run in order and print what their comments say."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "hugging_face.md").read_text()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of names that transformers deprecates
def test_the_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["0.0", "{(1, 'depth'): (16, 16), (3, 'depth'): (16, 16)}"]
    assert re.fullmatch(r"[\d,]+ FLOPs", said[2])
    assert [line.partition(" selected")[0] for line in said[3:5]] == [
        "LayerStored(layer=1, seen=30,",
        "LayerStored(layer=3, seen=30,",
    ]
    assert said[5] == "modbench_llama 0.0"
    assert float(said[6]) < 1e-6
