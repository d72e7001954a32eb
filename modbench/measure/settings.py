"""How PyTorch computes in a whole process, whatever it computes: a router leaves that as it is, or what
is measured is not its own."""

import os

import torch

from modbench.errors import UserError
from modbench.measure.environment import VARIABLES


def settings() -> dict[str, object]:
    """Those of this process and thread, by name."""
    smallest = torch.tensor(1e-40, dtype=torch.float32, device="cpu")
    return {
        "threads": torch.get_num_threads(),
        "threads between ops": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "precision of float32 matmuls": _matmul_precision(),
        "oneDNN": torch.backends.mkldnn.enabled,
        "subnormal numbers": "kept" if (smallest * 1).item() else "flushed to 0",
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
    } | {name: os.environ.get(name, "not set") for name in VARIABLES}


def check_unchanged(before: dict[str, object]) -> None:
    """
    Raises:
        UserError: a setting is not what it was ``before``.
    """
    now = settings()
    changed = [f"{name} from {before[name]} to {now[name]}" for name in now if now[name] != before[name]]
    if changed:
        raise UserError(
            f"what was to be measured changed its whole process: {', '.join(changed)}; "
            "a router leaves such settings as they are"
        )


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set for some backends, and PyTorch has no one answer
        return "one of each backend"
