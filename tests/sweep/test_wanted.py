import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modbench.errors import UserError
from modbench.records.run import Run
from modbench.routing.registry import build_router
from modbench.sweep.command import suite_of
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Suite, parse_suite
from modbench.sweep.timings import TimingPlan
from modbench.sweep.wanted import Wanted, chosen, expand_planned, titles
from modbench.sweep.wanted import expand as runs_of


def expand(of: Suite) -> list[Wanted]:
    return runs_of(resolve(of))


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
    assert len({cell.run.key for cell in cells}) == 2 * 2 * 2 * 3
    assert {cell.label for cell in cells} == {
        "vanilla/small",
        "mod/small",
        "vanilla/wide",
        "mod/wide",
    }
    widths = {cell.label: cell.run.model.width for cell in cells}
    assert widths["mod/wide"] == 64


def test_runs_go_seed_by_seed_and_a_scheme_may_have_its_own_seeds() -> None:
    schemes = [{"router": "vanilla"}, {"router": "mod", "seeds": [1, 5]}, {"router": "token_choice"}]
    of = suite(schemes, sweep={"budgets": [1e12, 2e12], "seeds": [0, 1]})
    runs = expand(of)
    per_seed = [(item.label, item.run.seed) for item in runs if item.budget == 10**12]
    assert per_seed == [
        ("vanilla", 0),
        ("token_choice", 0),
        ("vanilla", 1),
        ("mod", 1),
        ("token_choice", 1),
        ("mod", 5),
    ]
    stated = suite_of(resolve(of), runs, expand_planned(resolve(of)), [])
    assert [row["label"] for row in stated["rows"]] == ["vanilla", "mod", "token_choice"]
    assert "compare" not in stated


def test_a_run_names_every_option_and_field_and_is_plain_json() -> None:
    (wanted,) = expand(suite([{"router": "mod", "options": {"capacity": 0.25}}]))
    stated = wanted.run.as_json()
    assert stated["router"]["options"] == build_router("mod", {"capacity": 0.25}).options()
    assert len(stated["router"]["options"]) > 1
    assert stated["model"]["kv_heads"] == 4
    assert stated["schedule"]["budgets"] == [10**12]
    assert json.loads(json.dumps(stated)) == stated
    assert Run.of(stated) == wanted.run


def test_a_label_a_task_and_how_often_is_measured_change_no_run() -> None:
    (before,) = expand(suite([{"router": "mod"}]))
    (after,) = expand(
        suite(
            [{"router": "mod", "label": "another name"}],
            measure={"steps": ["train", "downstream"], "downstream": ["arc_easy"]},
            train={"evaluations": 3, "checkpoint_seconds": 1.0},
            time={"samples": 4},
            keep={"weights": "none"},
        )
    )
    assert before.run.key == after.run.key


def test_what_is_left_at_its_default_and_what_is_spelt_out_is_one_cell() -> None:
    options = build_router("mod").options()
    (short,) = expand(suite([{"router": "mod"}]))
    (long,) = expand(suite([{"router": "mod", "options": options}], train={"batch": 8}))
    assert short.run.key == long.run.key


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
    assert preset.run.router.name == "token_choice"
    assert preset.label == "token_choice:olmoe"
    assert preset.run.router.options == spelt_out.run.router.options
    with pytest.raises(UserError, match="'token_choice:olmo': router 'token_choice' has no preset"):
        expand(suite([{"router": "token_choice:olmo"}]))


@pytest.mark.parametrize(
    "refuse",
    [expand, lambda shallow: TimingPlan.of(resolve(shallow), Path("nowhere"))],
    ids=["run", "time"],
)
def test_a_scheme_that_can_not_take_its_shape_is_named_with_suite_row_and_size(
    refuse: Callable[[Suite], object],
) -> None:
    model = {"width": 32, "layers": 1, "heads": 4}
    schemes = [{"router": "vanilla"}, {"router": "mod", "label": "mod, every second"}]
    shapes = [{"label": "deep", "layers": 2}, {"label": "flat", "layers": 1}]
    with pytest.raises(UserError, match=r"\[\[schemes\]\] 'mod, every second/flat': router 'mod'"):
        refuse(suite(schemes, model=model, shapes=shapes))


def test_a_title_tells_apart_what_differs() -> None:
    runs = expand(suite([{"router": "mod"}], sweep={"budgets": [1e12], "seeds": [0, 1]}))
    assert list(titles(runs).values()) == ["mod#0", "mod#1"]
    first = runs[0]
    assert titles([first]) == {first.run.key: "mod"}
    train = replace(first.run.train, learning_rate=0.5)
    faster = replace(first, run=replace(first.run, train=train))
    assert list(titles([first, faster]).values()) == ["mod,lr=0.003", "mod,lr=0.5"]


def test_runs_are_chosen_by_name() -> None:
    schemes = [{"router": "vanilla"}, {"router": "mod"}]
    runs = expand(suite(schemes, sweep={"budgets": [1e12, 2e12], "seeds": [0, 1]}))

    def names(*only: str) -> list[str]:
        shown = titles(runs)
        return [shown[wanted.run.key] for wanted in chosen(runs, only)]

    assert names("mod@1e12#0") == ["mod@1e12#0"]
    assert names("mod#1", "vanilla@2e12#0") == ["vanilla@2e12#0", "mod@1e12#1", "mod@2e12#1"]
    with pytest.raises(UserError, match="--only: the suite has no run 'mod@3e12#0'; did you mean 'mod@"):
        names("mod@3e12#0")
    with pytest.raises(UserError, match="no row of the suite is called 'mdo'; did you mean 'mod'"):
        names("mdo@1e12")
    # The command asks with the runs that are known now and those that are planned.
    with pytest.raises(UserError, match=r"known: mod@1e12#0, mod@1e12#1, mod@2e12#0, mod@2e12#1$"):
        chosen([*runs, *runs], ["mod@7e12#0"])
