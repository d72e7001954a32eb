"""The same records give the same bytes on other processors, whose linear algebra, exp and log round
differently."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.figures, pytest.mark.slow]

RESULTS = Path(__file__).parents[2] / "results"
SUITES = sorted(page.parent.name for page in RESULTS.glob("*/leaderboard.md"))
#: Instruction sets that NumPy does not use.
NO_AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
PROCESSORS = {
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "Nehalem": {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": NO_AVX512},
}


def test_the_committed_suites_are_found() -> None:
    assert {"isoflop-cpu", "quick", "quick-scores"} <= {*SUITES}


@pytest.mark.parametrize("suite", SUITES)
def test_the_report_is_the_same_on_other_processors(suite: str, tmp_path: Path) -> None:
    """Tables to the byte also as committed; figures carry the version of the library that drew them."""
    reports = {}
    for name, variables in PROCESSORS.items():
        folder = tmp_path / name / suite
        for kind in ("records", "timings"):
            if (RESULTS / suite / kind).is_dir():
                shutil.copytree(RESULTS / suite / kind, folder / kind)
        words = ("modbench", "report", suite, "--html", "--results", str(folder.parent))
        environment = {**os.environ, **variables}
        subprocess.run([sys.executable, "-m", *words], env=environment, check=True, capture_output=True)
        reports[name] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    first, second = reports.values()
    assert [name for name in first if first[name] != second.get(name)] == []
    for name in first:
        if name.endswith((".csv", ".md")):
            assert first[name] == (RESULTS / suite / name).read_bytes(), name
