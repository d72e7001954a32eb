"""What modbench asks a GPU and its driver, answered by stand-ins: random state, memory, NVML and
nvidia-smi."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import no_card
import numpy as np
import pytest
import torch
from torch import Tensor

from modbench.data.batches import Batches
from modbench.errors import UserError
from modbench.measure.environment import environment
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.sweep import local
from modbench.timing import clock, footprint
from modbench.train import loop, numerics
from modbench.train.config import TrainConfig
from modbench.train.ranks import ALONE
from modbench.train.schedule import Schedule

CUDA = torch.device("cuda")
UUID = "3a0bc1d2"


def training(seed: int) -> loop._Run:
    """A run whose model would be on a GPU."""
    shape = ModelConfig(vocabulary=97, width=16, layers=1, heads=2, mlp_width=16)
    model = build_model(shape, build_router("vanilla"), seed=seed)
    text_N = np.zeros(400, dtype=np.uint16)
    train = TrainConfig(sequence=8, batch=2)
    schedule = Schedule(budgets=(10**9,))
    batches = Batches(text_N, sequence=8, batch=2, seed=0)
    run = loop._Run(model, batches, train, schedule, torch.float32, lambda: 0.0, ALONE)
    run.device = CUDA
    return run


def test_a_checkpoint_holds_the_gpus_random_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states: dict[str, Tensor] = {"cuda": torch.arange(5, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda on: states[str(on)].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, on: states.update({str(on): state}))
    training(1).save(tmp_path / "checkpoint.pt", "here")
    states["cuda"] = torch.zeros(5, dtype=torch.uint8)
    training(2).resume(tmp_path / "checkpoint.pt", "here")
    assert states["cuda"].tolist() == [0, 1, 2, 3, 4]


def test_a_gpus_peak_is_above_what_it_held_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own memory is no part of it."""
    done: list[str] = []
    held = {"now": 700, "peak": 9000}

    def reset(on: torch.device) -> None:
        done.append("reset")
        held["peak"] = held["now"]

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda on: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda on: held["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    meter = footprint.MemoryMeter(CUDA)
    assert (meter.peak(), done) == (0, ["reset"])
    held["peak"] = 1700
    assert meter.peak() == 1000
    meter.reset_peak()
    assert meter.peak() == 0


def test_freed_blocks_are_returned_after_unreachable_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(footprint.gc, "collect", lambda: done.append("collect"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty"))
    footprint.release_memory(CUDA)
    footprint.release_memory(torch.device("cpu"))
    assert done == ["collect", "empty", "collect"]


@pytest.mark.parametrize(
    ("place", "name", "value", "reason"),
    [
        (os.environ, "CXX", "/nowhere/c++", "compiler"),
        (torch, "__version__", "2.99.0+cpu", "2.99.0"),
        (torch.version, "cuda", "13.0", "CPU build"),
        (sys, "platform", "darwin", "Linux"),
    ],
)
def test_fake_cuda_tensors_are_skipped_with_a_reason(
    place: Any, name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place is os.environ:
        monkeypatch.setattr(torch, "__version__", f"{no_card.MADE_FOR[0]}.0+cpu")
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setitem(os.environ, name, value)
    else:
        monkeypatch.setattr(place, name, value)
    assert reason in no_card.missing()


class NVMLError(Exception):
    pass


def pynvml(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    module = ModuleType("pynvml")
    vars(module).update(NVMLError=NVMLError, nvmlInit=lambda: None, **functions)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = SimpleNamespace(uuid=UUID, name="H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda on: properties)


def test_nvml_is_asked_about_the_gpu_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml(monkeypatch, nvmlDeviceGetHandleByUUID=str, nvmlDeviceGetTemperature=lambda handle, of: 40)
    gpu, why_none = clock.open_gpu(CUDA)
    assert gpu is not None
    assert (gpu._handle, why_none) == (f"GPU-{UUID}", "ok")
    assert gpu.ask("nvmlDeviceGetTemperature", 0) == 40
    assert gpu.ask("nvmlDeviceGetNoSuchThing") is None


def test_without_nvml_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(uuid: str) -> None:
        raise NVMLError("driver not loaded")

    pynvml(monkeypatch, nvmlDeviceGetHandleByUUID=refused)
    assert clock.open_gpu(CUDA) == (None, "NVML: driver not loaded")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu, why_none = clock.open_gpu(CUDA)
    assert gpu is None
    assert "pynvml" in why_none


@pytest.mark.parametrize("installed", [True, False])
def test_the_environment_names_gpu_and_driver(
    installed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    smi = tmp_path / "nvidia-smi"
    card = "H100, 580.1, 1980 MHz, 2619 MHz, 700.00 W"
    smi.write_text(f'#!/bin/sh\ncase "$*" in *GPU-{UUID}*) echo "{card}";; *) exit 6; esac\n')
    smi.chmod(0o755 if installed else 0o644)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    pynvml(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    found = environment(torch.bfloat16)
    assert (found["gpu"], found["gpu_memory_bytes"]) == ("H100", 80 * 2**30)
    assert found["driver"] == ("580.1" if installed else None)
    assert found.get("gpu_clock_max") == ("1980 MHz" if installed else None)


@pytest.mark.parametrize(("capability", "there"), [("7.5", False), ("8.0", True), ("12.0", True)])
def test_a_card_without_bfloat16_is_refused_where_a_suite_asks_for_it(
    capability: str, there: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By nvidia-smi in the command, which does not use the GPU, and by PyTorch in a worker."""
    nvidia = tmp_path / "nvidia-smi"
    nvidia.write_text(f"#!/bin/sh\ncase $2 in *compute_cap) echo {capability};; esac\n")
    nvidia.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there)
    assert numerics.precision("auto", CUDA) == (torch.bfloat16 if there else torch.float32)
    for check in (local.refuse_machine, numerics.check_device):
        check("cuda", "float32")
        if there:
            check("cuda", "bfloat16")
        else:
            with pytest.raises(UserError, match="precision=float32"):
                check("cuda", "bfloat16")


def test_a_worker_on_a_machine_without_a_gpu_refuses_a_suite_for_one() -> None:
    """Of a cluster, whose nodes differ from the machine of the command."""
    numerics.check_device("auto", "bfloat16")
    with pytest.raises(UserError, match="GPU"):
        numerics.check_device("cuda", "float32")
