import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modbench.errors import UserError
from modbench.records.record import cell_key
from modbench.routing.registry import build_router
from modbench.sweep.cells import by_key, chosen, titles
from modbench.sweep.cells import expand as cells_of
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Suite, parse_suite
from modbench.sweep.timings import timing_cells


def expand(of: Suite) -> list[dict]:
    return cells_of(resolve(of))


PLUGIN = """
from dataclasses import dataclass
from modbench import DepthRouter, register_router

@register_router("sweep_taken")
@dataclass(frozen=True, kw_only=True)
class Mine(DepthRouter):
    pass
"""


def suite(schemes: list[dict], **tables: dict) -> Suite:
    content = {
        "suite": {"name": "mine"},
        "model": {"width": 32, "layers": 2, "heads": 4},
        "sweep": {"budgets": [10**12], "seeds": [0]},
        "schemes": schemes,
        **tables,
    }
    return parse_suite(content, "mine.toml")


def test_a_suite_is_schemes_times_shapes_times_budgets_times_seeds() -> None:
    cells = expand(
        suite(
            [{"router": "vanilla"}, {"router": "mod"}],
            sweep={"budgets": [1e12, 2e12], "seeds": [0, 1, 2]},
            shapes=[{"label": "small"}, {"label": "wide", "width": 64}],
        )
    )
    assert len({cell_key(cell) for cell in cells}) == 2 * 2 * 2 * 3
    assert {cell["router"]["label"] for cell in cells} == {
        "vanilla/small",
        "mod/small",
        "vanilla/wide",
        "mod/wide",
    }
    widths = {cell["router"]["label"]: cell["model"]["width"] for cell in cells}
    assert widths["mod/wide"] == 64


def test_a_cell_names_every_option_and_field_and_is_plain_json() -> None:
    (cell,) = expand(suite([{"router": "mod", "options": {"capacity": 0.25}}]))
    assert cell["router"]["options"] == build_router("mod", {"capacity": 0.25}).options()
    assert len(cell["router"]["options"]) > 1
    assert cell["model"]["kv_heads"] == 4
    assert cell["train"]["budget"] == 10**12
    assert cell["measure"]["downstream"] == ["modbench_cloze"]
    assert json.loads(json.dumps(cell)) == cell


def test_what_is_left_at_its_default_and_what_is_spelt_out_is_one_cell() -> None:
    options = build_router("mod").options()
    (short,) = expand(suite([{"router": "mod"}]))
    (long,) = expand(suite([{"router": "mod", "options": options}], train={"batch": 8}))
    assert cell_key(short) == cell_key(long)


def test_a_preset_is_its_options_and_others_go_on_top() -> None:
    preset, spelt_out = expand(
        suite(
            [
                {"router": "token_choice:olmoe", "options": {"z_loss": 0.5}},
                {
                    "router": "token_choice",
                    "label": "token_choice:olmoe 2",
                    "options": {"experts": 64, "top_k": 8, "renormalise": False, "z_loss": 0.5},
                },
            ]
        )
    )
    assert preset["router"]["name"] == "token_choice"
    assert preset["router"]["label"] == "token_choice:olmoe"
    assert preset["router"]["options"] == spelt_out["router"]["options"]
    with pytest.raises(UserError, match="'token_choice:olmo': router 'token_choice' has no preset"):
        expand(suite([{"router": "token_choice:olmo"}]))


def test_a_scheme_may_train_differently() -> None:
    cells = expand(suite([{"router": "vanilla"}, {"router": "mod", "train": {"learning_rate": 1e-4}}]))
    assert [cell["train"]["learning_rate"] for cell in cells] == [3e-3, 1e-4]


@pytest.mark.parametrize(
    ("scheme", "sentence"),
    [
        ({"router": "mid"}, "router 'mid' is not known; did you mean 'mod'?"),
        (
            {"router": "mod", "options": {"capcity": 0.5}},
            "has no 'capcity'; did you mean 'capacity'?",
        ),
        ({"router": "mod", "options": {"capacity": 2.0}}, "capacity is 2"),
    ],
)
def test_an_unknown_router_or_a_wrong_option_is_named_with_the_suite(
    scheme: dict, sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        expand(suite([scheme]))
    assert str(error.value).startswith(f"suite mine.toml: [[schemes]] '{scheme['router']}': ")
    assert sentence in str(error.value)


def test_only_keeps_the_rows_that_are_named_and_refuses_others() -> None:
    cells = expand(suite([{"router": "vanilla"}, {"router": "mod"}]))
    assert chosen(cells, []) == cells
    assert [cell["router"]["label"] for cell in chosen(cells, ["mod"])] == ["mod"]
    with pytest.raises(UserError, match="called 'mdo'; did you mean 'mod'"):
        chosen(cells, ["mdo"])


def test_a_budget_smaller_than_one_step_is_refused() -> None:
    little = suite([{"router": "vanilla"}], sweep={"budgets": [1000]})
    with pytest.raises(UserError) as error:
        expand(little)
    assert str(error.value).startswith(
        "suite mine.toml: [sweep] budgets: budget 1000 is smaller than one training step of 'vanilla'"
    )


@pytest.mark.parametrize(
    ("shapes", "row"),
    [
        ([], "mod, every second"),
        ([{"label": "deep", "layers": 2}, {"label": "flat", "layers": 1}], "mod, every second/flat"),
    ],
    ids=["one-size", "two-sizes"],
)
@pytest.mark.parametrize(
    "refuse", [expand, lambda shallow: timing_cells(resolve(shallow))], ids=["run", "time"]
)
def test_a_scheme_that_can_not_take_its_shape_is_named_with_suite_row_and_size(
    refuse: Callable[[Suite], object], shapes: list[dict], row: str
) -> None:
    model = {"width": 32, "layers": 1, "heads": 4}
    schemes = [{"router": "vanilla"}, {"router": "mod", "label": "mod, every second"}]
    shallow = suite(schemes, model=model, shapes=shapes)
    with pytest.raises(UserError) as error:
        refuse(shallow)
    sentence = f"suite mine.toml: row '{row}': router 'mod': no block of 1 is routed"
    assert str(error.value).startswith(sentence)


def test_a_plugin_whose_name_is_another_rows_label_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sweep_taken.py"
    file.write_text(PLUGIN)
    taken = suite([{"router": "vanilla", "label": "sweep_taken"}])
    with pytest.raises(UserError, match="two have the label 'sweep_taken'"):
        resolve(taken, [file])


def test_a_title_tells_apart_what_differs() -> None:
    cells = by_key(expand(suite([{"router": "mod"}], sweep={"budgets": [1e12], "seeds": [0, 1]})))
    assert list(titles(cells).values()) == ["mod, seed 0", "mod, seed 1"]
    key, cell = next(iter(cells.items()))
    assert titles({key: cell}) == {key: "mod"}
    faster = {**cell, "train": {**cell["train"], "learning_rate": 0.5}}
    assert list(titles(by_key([cell, faster])).values()) == [
        "mod, learning rate 0.003",
        "mod, learning rate 0.5",
    ]
