"""Workload and Ledger: the input of a layer, and the FLOPs it spends. Integers, pure Python, no
torch."""

from modbench.ledger.flops import CONVENTIONS, Flops
from modbench.ledger.labels import component
from modbench.ledger.ledger import OUTSIDE, Direction, Key, Ledger, attention, matmul
from modbench.ledger.workload import PHASES, Counts, Phase, Workload, incremental_counts

__all__ = [
    "CONVENTIONS",
    "OUTSIDE",
    "PHASES",
    "Counts",
    "Direction",
    "Flops",
    "Key",
    "Ledger",
    "Phase",
    "Workload",
    "attention",
    "component",
    "incremental_counts",
    "matmul",
]
