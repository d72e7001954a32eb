"""Mistakes in a plugin file: one sentence with the file, the line and what to do."""

from pathlib import Path

import pytest

from modbench.cli.main import main
from modbench.routing import registry

HEAD = """from dataclasses import dataclass, field
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

"""
PLUGIN = (
    HEAD
    + """@register_router("mistaken")
@dataclass(frozen=True, kw_only=True)
class Mistaken(Router):
    capacity: float = 0.25

    def build_layer(self, model, layer):
        return Block(model, layer)
"""
)
LINE = "@dataclass(frozen=True, kw_only=True)\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.installed_modules():  # imported once in a process, registered once
        registry.router_class(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], text: str | bytes, *others: str) -> str:
    """The output of `modbench flops` for a plugin file with ``text``."""
    content = text.encode() if isinstance(text, str) else text
    Path("mine.py").write_bytes(content)
    assert main(["flops", "--router", "mistaken", "--plugin", *others, "mine.py"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("modbench: ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (PLUGIN.replace("frozen=True, ", ""), "(Mistaken) must be a frozen dataclass; put @register_r"),
        (PLUGIN.replace(LINE, ""), "(Mistaken) must be a frozen dataclass; put @register_router"),
        (
            PLUGIN.replace("(Router)", ""),
            "(Mistaken) must derive from DepthRouter, ExpertRouter or Router",
        ),
        (
            PLUGIN.replace("build_layer", "build_layers"),
            "(Mistaken) does not define build_layer; define it, or derive from DepthRouter",
        ),
        (
            PLUGIN.replace('@register_router("mistaken")\n', ""),
            "registers no router; put @register_router('name') above a class that derives from",
        ),
        (
            PLUGIN + "    gates: list = []\n",
            "raised ValueError: mutable default <class 'list'> for field gates is not allowed: use "
            "default_factory (mine.py, line 7); fix it",
        ),
        ("x = (1\n", "raised SyntaxError: '(' was never closed (mine.py, line 1); fix it"),
        (b"\x89PNG\xff", "raised SyntaxError: "),
        (
            "import no_such_package.inner\n",
            "raised ModuleNotFoundError: No module named 'no_such_package' (mine.py, line 1); fix it",
        ),
    ],
)
def test_a_mistake_in_a_plugin_file_gets_one_sentence(
    text: str | bytes, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(capsys, text)
    assert line.startswith("plugin mine.py")
    assert sentence in line


HOOKED = """from dataclasses import dataclass
from modbench import DepthRouter, ExpertRouter, register_router

@register_router("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine({base}):
    def {method}(self, *_):
        return None
"""


@pytest.mark.parametrize(
    ("base", "method", "hook"),
    [
        ("DepthRouter", "gates", "gate"),
        ("DepthRouter", "score", "scorer"),
        ("DepthRouter", "select", "selected"),
        ("ExpertRouter", "chooses", "choose"),
        ("ExpertRouter", "loss", "losses"),
        ("ExpertRouter", "nominal_experts", "nominal_experts_per_token"),
    ],
)
def test_a_misspelt_hook_is_not_ignored(
    base: str, method: str, hook: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(capsys, HOOKED.format(name="mistaken", base=base, method=method))
    assert line == (
        f"plugin mine.py: router 'mistaken' (Mine) defines {method} (mine.py, line 7); did you mean "
        f"'{hook}'? a method that is no hook needs another name, such as '_{method}'"
    )


@pytest.mark.parametrize("method", ["temperature", "_gates", "applied_gate"])
def test_a_method_that_is_no_misspelt_hook_is_accepted(method: str) -> None:
    name = f"accepted{method}"
    Path(f"{name}.py").write_text(HOOKED.format(name=name, base="DepthRouter", method=method))
    assert registry.load_plugin(f"{name}.py") == [name]


def test_two_plugins_of_one_name_are_both_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    Path("other", "mine.py").write_text(PLUGIN)
    line = said(capsys, PLUGIN, "other/mine.py")
    assert line == (
        "plugin mine.py: router 'mistaken' of mine.py is already registered by other/mine.py; choose "
        "another name (mine.py, line 6)"
    )


def test_a_non_frozen_subclass_of_a_frozen_router_is_told_how(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = HEAD + (
        "from modbench.routers.mod import DepthOptions\n"
        '@register_router("mistaken")\n@dataclass\nclass Mistaken(DepthOptions):\n'
        "    def build_layer(self, model, layer): ...\n"
    )
    line = said(capsys, text)
    assert line == (
        "plugin mine.py raised TypeError: cannot inherit non-frozen dataclass from a frozen one "
        "(mine.py, line 8); put @register_router('NAME') and, below it, @dataclass(frozen=True, "
        "kw_only=True) above the class"
    )


def test_a_post_init_that_raises_is_located(capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, PLUGIN + "    def __post_init__(self):\n        1 / 0\n")
    assert line == (
        "router 'mistaken' raised ZeroDivisionError: division by zero in its construction (mine.py, "
        "line 14); fix it"
    )
