"""The snippets of the page on trained models run, one after another, on runs of a small suite."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from small_suite import modbench_says, write_suite

from modbench.cli.main import main
from modbench.model.context import Context

PAGE = (Path(__file__).parent.parent / "docs" / "models.md").read_text()


def test_the_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_suite(tmp_path, "quick", "vanilla", "mod", model={"layers": 2})
    code, said = modbench_says(tmp_path, "run", "suite.toml")
    assert code == 0, said
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"`(modbench sample [^`]*)`", PAGE):
        assert main(shlex.split(command)[1:]) == 0
    found: dict[str, Any] = {}
    for language, block in re.findall(r"```(python|console)\n(.*?)```", PAGE, flags=re.DOTALL):
        if language == "python":
            exec(block, found)
            continue
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "))
            assert words[0] == "modbench" or words[:3] == ["python", "-m", "pip"]
            assert words[0] != "modbench" or main(words[1:]) == 0
    model, tokenizer, llama = (found[name] for name in ("model", "tokenizer", "llama"))
    # The padded batch has the logits of each text alone.
    for text, row_TV in zip(found["texts"], found["padded_logits_BTV"], strict=True):
        alone_BTV = model(torch.tensor([text]), Context(selection="causal"))
        torch.testing.assert_close(row_TV[: len(text)], alone_BTV[0], rtol=0, atol=1e-5)
    logits = found["padded_logits_BTV"][:1], found["logits_BTV"]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    assert [len(ids) for ids in found["new"]] == [20, 20]
    assert found["inputs"]["input_ids"].tolist() == [tokenizer.encode("In the beginning")]
    assert llama.config.model_type == "llama"
    assert found["text"].startswith("In the beginning")
