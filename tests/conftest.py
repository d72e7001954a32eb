"""Fixtures of all tests, and the small shapes on which routing must be right."""

import os
from dataclasses import replace

import pytest
import torch

from modbench.model.config import ModelConfig

#: Fixtures of made-up records, for the tests of several folders.
pytest_plugins = ("made_up_records",)

# Measurements would wait for a quiet machine, which a test run never is.
os.environ.setdefault("MODBENCH_QUIET_SECONDS", "0")
# A second thread slows models this small down, all the more on a busy machine.
torch.set_num_threads(1)

#: Awkward on purpose: odd vocabulary, grouped heads, an untied head, a depth that 2 does not divide.
AWKWARD = ModelConfig(
    vocabulary=301, width=48, layers=3, heads=6, kv_heads=2, mlp="gelu", mlp_width=80, tied_head=False
)
PLAIN = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


#: Tests of 25 seconds or more, longest first. They start first, so that none runs alone at the end.
LONGEST = (
    "test_kills_change_no_result",
    "test_the_report_is_the_same_on_other_processors",
    "test_one_command_gives_records_a_table_and_plots_even_after_a_kill",
    "test_the_commands_of_the_five_minute_start_do_what_it_says",
    "test_an_edited_package_trains_again_in_a_row_of_its_own",
    "test_one_interrupt_ends_a_run_whose_plugin_hangs_at_import",
    "test_few_shot_examples_are_recorded_and_missing_files_are_refused_first",
    "test_three_seeds_of_a_scheme_are_audited_once",
    "test_optima_csv_has_all_fits_at_full_precision",
    "test_a_plugin_that_breaks_costs_its_own_row",
    "test_every_shape_of_isoflop_grids_is_timed_once_and_a_new_run_ends",
    "test_bytes_follow_from_the_set_of_records_alone",
    "test_a_run_that_an_orphan_finishes_is_not_trained_again",
    "test_exit_code_and_output_of_the_command_are_kept",
    "test_the_other_rows_are_run_and_the_exit_code_is_2",
    "test_steps_are_measured_in_workers_and_too_large_ones_are_not",
    "test_the_committed_report_follows_from_the_committed_records",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.name.partition("[")[0], len(LONGEST)))


@pytest.fixture(params=[pytest.param(PLAIN, marks=pytest.mark.full), AWKWARD], ids=["plain", "awkward"])
def shape(request: pytest.FixtureRequest) -> ModelConfig:
    """The small shapes, with more layers for the scheme that shares layers."""
    if request.node.callspec.params.get("name") == "mixture_of_recursions":
        return replace(request.param, layers=4)
    return request.param


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pytest-xdist from processes that tests start; in its workers nothing is timed."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
