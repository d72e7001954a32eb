"""Benchmarks run by hand; what they import must still exist."""

import importlib
from pathlib import Path

import pytest

NAMES = sorted(file.stem for file in Path(__file__).parent.glob("bench_*.py"))


@pytest.mark.parametrize("name", [*NAMES, "compare_revisions", "run_benchmarks"])
def test_a_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(name)
