"""Options that may be left out: what help shows, and which values they take."""

import pytest
import tyro

from modbench.cli.main import COMMANDS, main
from modbench.cli.unset import REGISTRY
from modbench.model.sizes import ShapeOptions


def parsed(*words: str) -> ShapeOptions:
    with REGISTRY:
        return tyro.cli(ShapeOptions, args=words)


def test_an_option_that_is_left_out_is_none() -> None:
    assert parsed() == ShapeOptions()


def test_a_given_option_has_the_type_of_its_values() -> None:
    given = parsed("--width", "64", "--mlp", "gelu", "--tied-head", "False")
    assert given == ShapeOptions(width=64, mlp="gelu", tied_head=False)


@pytest.mark.parametrize("words", [("--width", "wide"), ("--mlp", "relu"), ("--width", "None")])
def test_another_value_is_refused(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_types_and_no_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert "None" not in said
    if command in ("audit", "plan", "flops"):
        assert "--width INT" in said
        assert "{swiglu,gelu}" in said
