"""Options that a plugin's class sets without an annotation, which Python does not take for fields."""

from pathlib import Path

import pytest

from modbench.errors import UserError
from modbench.routing.registry import build_router, load_plugin

HEAD = """from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar
from modbench import DepthRouter, ExpertRouter, register_router
FIELDS = dataclass(frozen=True, kw_only=True)
"""
MINE = '@register_router("mine")\n@FIELDS\nclass Mine({}):\n'
#: Lines of `HEAD` and, with one line of a class before it, of `MINE`.
BEFORE = HEAD.count("\n")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str) -> None:
    Path("mine.py").write_text(HEAD + text)
    load_plugin("mine.py")


OWN = "@FIELDS\nclass Own(DepthRouter):\n    hidden: int = 32\n"


@pytest.mark.parametrize(
    ("text", "line", "remedy"),
    [
        (MINE.format("DepthRouter") + "    capacity = 0.25\n", 4, "`capacity: float = 0.25`"),
        (MINE.format("DepthRouter") + "    every = capacity = 1\n", 4, "`every: int = 1`"),
        (MINE.format("DepthRouter") + "    causal = 'aux_bce'\n", 4, "`causal: str = 'aux_bce'`"),
        (
            MINE.format("ExpertRouter") + "    top_k: int = 1\n    experts = 16\n",
            5,
            "`experts: int = 16`",
        ),
        (
            MINE.format("ExpertRouter") + "    capacity_factor = 2\n",
            4,
            "`capacity_factor: float | None = 2`",
        ),
        (
            MINE.format("DepthRouter")
            + "    def scorer(self, model):\n        capacity = 1\n    capacity = 0.5\n",
            6,
            "`capacity: float = 0.5`",
        ),
        (
            MINE.format("DepthRouter") + "    @property\n    def capacity(self): return 0.5\n",
            5,
            "`capacity: float = VALUE`",
        ),
        (
            MINE.format("DepthRouter") + "    @cached_property\n    def capacity(self): return 0.5\n",
            5,
            "`capacity: float = VALUE`",
        ),
        (OWN + MINE.format("Own") + "    hidden = 64\n", 7, "`hidden: int = 64`"),
        (
            "class Mixin:\n    capacity = 0.25\n" + MINE.format("Mixin, DepthRouter") + "    pass\n",
            2,
            "`capacity: float = 0.25` in Mine",
        ),
        (
            "class Mixin:\n    capacity = 0.25\n" + MINE.format("DepthRouter, Mixin") + "    pass\n",
            2,
            "`capacity: float = 0.25` in Mine",
        ),
        (  # without a decorator the annotation declares no field
            "class Base(DepthRouter):\n    capacity: float = 0.25\n"
            + MINE.format("Base")
            + "    pass\n",
            2,
            "`capacity: float = 0.25` in Mine",
        ),
    ],
)
def test_an_option_that_would_keep_its_base_s_value_is_refused(
    text: str, line: int, remedy: str
) -> None:
    with pytest.raises(UserError) as raised:
        load(text)
    name = remedy[1:].partition(":")[0]
    assert f"router 'mine' (Mine) sets option '{name}' (mine.py, line {BEFORE + line})" in str(
        raised.value
    )
    assert remedy in str(raised.value)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (MINE.format("DepthRouter") + "    width_factor = 2\n", {}),  # a name of its own is a constant
        (MINE.format("DepthRouter") + "    presets = {'half': {'capacity': 0.5}}\n", {}),
        (MINE.format("DepthRouter") + "    capacity: float = 0.25\n", {"capacity": 0.25}),
        (
            "@FIELDS\nclass Mixin:\n    capacity: float = 0.25\n"
            + MINE.format("Mixin, DepthRouter")
            + "    pass\n",
            {"capacity": 0.25},
        ),
        (
            "class Mixin:\n    capacity = 1\n"
            + MINE.format("Mixin, DepthRouter")
            + "    capacity: float = 0.25\n",
            {"capacity": 0.25},
        ),
        (OWN + MINE.format("Own") + "    hidden: int = 64\n", {"hidden": 64}),
        (MINE.format("DepthRouter") + "    every: int = field(init=False, default=1)\n", {}),
        (
            '@register_router("mine")\n@dataclass(frozen=True, kw_only=True, slots=True)\n'
            "class Mine(DepthRouter):\n    hidden: int = 3\n",
            {"hidden": 3},
        ),
    ],
)
def test_constants_and_annotated_options_are_accepted(text: str, options: dict[str, float]) -> None:
    load(text)
    assert options.items() <= build_router("mine").options().items()


def test_a_class_variable_fixes_what_is_no_option_any_more() -> None:
    load(MINE.format("DepthRouter") + "    capacity: ClassVar[float] = 0.25\n")
    router = build_router("mine")
    assert router.capacity == 0.25  # type: ignore[attr-defined]
    assert "capacity" not in router.options()
