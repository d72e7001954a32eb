"""Which processor this is."""

from pathlib import Path

import pytest
import torch

from modbench.model import processor

AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(("text", "maker"), [(AMD, "AuthenticAMD"), (ARM, ""), ("", "")])
def test_the_maker_is_read_from_linux(
    text: str, maker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(text)
    monkeypatch.setattr(processor, "_INFO", info)
    assert processor.maker() == maker


@pytest.mark.parametrize(
    ("told", "maker"),
    [("AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", "AuthenticAMD"), ("", ""), (None, "")],
)
def test_elsewhere_the_system_is_asked(
    told: str | None, maker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_INFO", tmp_path / "none")
    monkeypatch.delenv("PROCESSOR_IDENTIFIER", raising=False)
    if told is not None:
        monkeypatch.setenv("PROCESSOR_IDENTIFIER", told)
    assert processor.maker() == maker


def test_whatever_cannot_be_read_names_no_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_INFO", tmp_path)  # a folder
    monkeypatch.delenv("PROCESSOR_IDENTIFIER", raising=False)
    assert processor.maker() == ""
    (tmp_path / "cpuinfo").write_bytes(b"model name\t: \xff\nvendor_id\t: GenuineIntel\n")
    monkeypatch.setattr(processor, "_INFO", tmp_path / "cpuinfo")
    assert processor.maker() == "GenuineIntel"


def test_amds_are_slow_with_few_rows() -> None:
    slow = [name for name in ("AuthenticAMD", "GenuineIntel", "") if processor.slow_with_few(name)]
    assert slow == ["AuthenticAMD"]


def test_units_for_matrices_are_pytorchs_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for told in (True, False):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda told=told: {"amx_bf16": told}, raising=False
        )
        assert processor.matrix_units() is told
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert processor.matrix_units() is False
