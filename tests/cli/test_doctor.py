"""`modbench doctor`: one line for each thing that works or does not, with stand-ins for a GPU."""

import os
from pathlib import Path

import pytest
import torch

from modbench.cli.doctor import doctor

CARD = "0, NVIDIA H100 80GB HBM3, 580.65.06, 9.0, 81559, 4, Disabled, Default"


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine with one card, of which nvidia-smi says ``line``; ``apps``: other processes on it."""

    def made(line: str = CARD, apps: str = "") -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\ncase "$1" in *compute-apps*) printf "{apps}";; *) echo "{line}";; esac\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr("modbench.cli.doctor.find_spec", lambda name: object())

    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    return made


def test_a_cpu_is_enough_for_suites_and_not_for_bench_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor() == 0
    said = capsys.readouterr().out
    assert "note   no GPU that PyTorch can use" in said
    assert "nox -s bench" in said
    assert doctor(gpu=True) == 1
    assert "fails  no GPU that PyTorch can use" in capsys.readouterr().out


def test_a_free_card_is_ready(card, capsys: pytest.CaptureFixture[str]) -> None:
    card()
    assert doctor(gpu=True) == 0
    said = capsys.readouterr().out
    assert "GPU 0: NVIDIA H100 80GB HBM3, driver 580.65.06, 86 of 86 GB free" in said
    assert "fails" not in said


@pytest.mark.parametrize(
    ("line", "apps", "words", "code"),
    [
        (CARD.replace("9.0", "7.5"), "", "too old for bfloat16", 1),
        (CARD.replace("81559", "16384"), "", "too small for the largest rows", 0),
        (CARD.replace("Disabled", "Enabled"), "", "is split (MIG)", 0),
        (CARD.replace(" 4,", " 40000,"), "H100, 77, 39000\\n", "is in use", 0),
        (CARD, "H100, 77, 39000\\n", "process 77 uses 39000 MiB of a GPU (H100)", 0),
        (CARD.replace("Default", "Prohibited"), "", "takes no work", 1),
    ],
)
def test_what_is_wrong_with_a_card(
    line: str, apps: str, words: str, code: int, card, capsys: pytest.CaptureFixture[str]
) -> None:
    card(line, apps)
    assert doctor(gpu=True) == code
    assert words in capsys.readouterr().out


def test_a_driver_that_is_too_old_and_blocking_launches(
    card, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import warnings

    def old() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old (found version 12020).", stacklevel=2)
        return False

    card()
    monkeypatch.setattr(torch.cuda, "is_available", old)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    assert doctor(gpu=True) == 1
    said = capsys.readouterr().out
    assert "fails  PyTorch says: The NVIDIA driver on your system is too old" in said
    assert "update the driver" in said
    assert "fails  CUDA_LAUNCH_BLOCKING is set" in said


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *of: False)
    assert doctor() == 1
    assert "can't be written; set MODBENCH_CACHE" in capsys.readouterr().out
