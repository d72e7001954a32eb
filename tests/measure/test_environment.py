"""What a record says of the machine, with stand-ins for a GPU."""

import os
from pathlib import Path

import pytest
import torch

from modbench.measure.environment import attention_backend, environment
from modbench.train.numerics import make_deterministic

NVIDIA = "NVIDIA H100 80GB HBM3, 580.65.06, 1980 MHz, 2619 MHz, 700.00 W"


def test_a_command_knows_the_gpu_without_using_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho "{NVIDIA}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def used(*device: object) -> None:
        raise AssertionError("a command must not make a CUDA context")

    for function in ("get_device_properties", "get_device_name", "current_device", "init"):
        monkeypatch.setattr(torch.cuda, function, used)
    found = environment(torch.bfloat16)
    assert found["gpu"] == "NVIDIA H100 80GB HBM3"
    assert (found["driver"], found["gpu_power_limit"]) == ("580.65.06", "700.00 W")
    assert {"cudnn", "triton", "attention", "tf32"} <= found.keys()
    assert "--id=3 " in (tmp_path / "asked").read_text()


def test_runs_and_timings_take_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cuda = torch.device("cuda"), torch.backends.cuda
    before = cuda.cudnn_sdp_enabled(), torch.get_deterministic_debug_mode()
    try:
        cuda.enable_cudnn_sdp(True)
        assert attention_backend(gpu) == "cudnn"
        make_deterministic()
        assert attention_backend(gpu) == "flash"
        assert attention_backend(torch.device("cpu")) == "math"
    finally:
        cuda.enable_cudnn_sdp(before[0])
        torch.set_deterministic_debug_mode(before[1])
