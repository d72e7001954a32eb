"""Compares routing schemes for language models at equal compute."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modbench.flops.counter import FlopCounter as FlopCounter
    from modbench.flops.counter import register_flop_formula as register_flop_formula

__version__ = "0.1.0"

__all__ = ["FlopCounter", "__version__", "register_flop_formula"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: importing modbench loads no torch.
    if name in ("FlopCounter", "register_flop_formula"):
        from modbench.flops import counter

        return getattr(counter, name)
    raise AttributeError(f"module 'modbench' has no attribute '{name}'")
