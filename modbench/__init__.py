"""Compares routing schemes for language models at equal compute."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modbench.accounting.count import Counted as Counted
    from modbench.accounting.count import count as count
    from modbench.counting.counter import FlopCounter as FlopCounter
    from modbench.counting.counter import register_flop_formula as register_flop_formula
    from modbench.hf.families import family_ledger as family_ledger
    from modbench.hf.retrofit.apply import receipt as receipt
    from modbench.hf.retrofit.apply import retrofit as retrofit
    from modbench.hf.retrofit.apply import upcycle as upcycle
    from modbench.ledger import Ledger as Ledger
    from modbench.ledger import Workload as Workload
    from modbench.report.api import curves as curves
    from modbench.report.api import pairs as pairs
    from modbench.report.api import results as results
    from modbench.routing.depth_router import DepthRouter as DepthRouter
    from modbench.routing.expert_router import ExpertRouter as ExpertRouter
    from modbench.routing.module_router import ModuleRouter as ModuleRouter
    from modbench.routing.registry import register_router as register_router
    from modbench.routing.router import Router as Router
    from modbench.trained.load import load as load

__version__ = "0.1.0"

#: Imported when asked for: importing modbench loads no torch.
_WHERE = {
    "Counted": "modbench.accounting.count",
    "ExpertRouter": "modbench.routing.expert_router",
    "FlopCounter": "modbench.counting.counter",
    "DepthRouter": "modbench.routing.depth_router",
    "Ledger": "modbench.ledger",
    "ModuleRouter": "modbench.routing.module_router",
    "Router": "modbench.routing.router",
    "Workload": "modbench.ledger",
    "count": "modbench.accounting.count",
    "curves": "modbench.report.api",
    "pairs": "modbench.report.api",
    "results": "modbench.report.api",
    "family_ledger": "modbench.hf.families",
    "load": "modbench.trained.load",
    "receipt": "modbench.hf.retrofit",
    "register_flop_formula": "modbench.counting.counter",
    "register_router": "modbench.routing.registry",
    "retrofit": "modbench.hf.retrofit",
    "upcycle": "modbench.hf.retrofit",
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'modbench' has no attribute '{name}'")
