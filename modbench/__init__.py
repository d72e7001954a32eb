"""Compares routing schemes for language models at equal compute."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modbench.flops.count import Counted as Counted
    from modbench.flops.count import count as count
    from modbench.flops.counter import FlopCounter as FlopCounter
    from modbench.flops.counter import register_flop_formula as register_flop_formula
    from modbench.flops.families import family_ledger as family_ledger
    from modbench.flops.ledger import Ledger as Ledger
    from modbench.flops.ledger import Load as Load

__version__ = "0.1.0"

#: Imported when asked for: importing modbench loads no torch.
_WHERE = {
    "Counted": "modbench.flops.count",
    "FlopCounter": "modbench.flops.counter",
    "Ledger": "modbench.flops.ledger",
    "Load": "modbench.flops.ledger",
    "count": "modbench.flops.count",
    "family_ledger": "modbench.flops.families",
    "register_flop_formula": "modbench.flops.counter",
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'modbench' has no attribute '{name}'")
