"""Commands that load a plugin survive one that ends or crashes its process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_suite import install, modbench_says

import modbench

pytestmark = pytest.mark.processes

GOOD = """
from dataclasses import dataclass
from modbench import DepthRouter, register_router

@register_router("apart_good")
@dataclass(frozen=True, kw_only=True)
class Good(DepthRouter):
    pass
"""


def says(place: Path, *words: str) -> tuple[int, str]:
    found = {"PYTHONPATH": str(Path(modbench.__file__).parent.parent)}
    process = subprocess.run(
        [sys.executable, "-m", "modbench", *words],
        cwd=place,
        env={**os.environ, **found},
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, process.stdout + process.stderr


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(0)", "exited with code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
    ],
)
def test_plugin_that_ends_the_process_is_a_sentence_and_exit_code_2(
    tmp_path: Path, code: str, how: str
) -> None:
    (tmp_path / "bad.py").write_text(code)
    sentence = f"modbench: the process that loaded the plugin or task {how} before the command was done"
    found, out = says(tmp_path, "check", "bad.py")
    assert found == 2
    assert out.startswith(sentence)
    assert out.count("\n") == 1


def test_an_installed_plugin_that_ends_the_process_is_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "packages", "ends", "import os; os._exit(0)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    code, out = modbench_says(tmp_path, "audit", "ends")
    assert code == 2
    assert out.startswith("modbench: the process that loaded the plugin or task exited with code 0 ")
    assert out.count("\n") == 1


def test_exit_code_and_output_of_the_command_are_kept(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    code, out = says(tmp_path, "flops", "--router", "apart_good", "--plugin", "good.py")
    assert (code, "apart_good" in out) == (0, True)
    code, out = says(tmp_path, "flops", "--router", "other", "--plugin", "good.py")
    assert (code, "router 'other' is not known" in out, "--plugin" in out) == (2, True, True)
