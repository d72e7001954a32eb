"""Closed forms of published families of causal language models, from the dict of a config.json.

Pure Python: neither torch nor transformers is imported. A family computes what its model in transformers
computes; experts have no capacity limit.
"""

from collections.abc import Mapping
from typing import Any

from modbench.accounting.families.architecture import ledger_of, reading_of
from modbench.accounting.families.layers import architecture_of
from modbench.accounting.families.source import FAMILIES, load_config
from modbench.accounting.literature import Reading
from modbench.ledger import Ledger, Workload

__all__ = ["FAMILIES", "family_ledger", "family_reading", "load_config"]


def family_ledger(config: Mapping[str, Any], workload: Workload, *, dense: bool = False) -> Ledger:
    """Return the ledger of a model of this config.json on ``workload``, all its weights trained. With
    ``dense``, an MLP of the config's ``intermediate_size`` replaces experts. Raise a `UserError` if the
    family (not one of `FAMILIES`) is unknown, or the shape impossible."""
    return ledger_of(architecture_of(config, dense=dense), workload)


def family_reading(config: Mapping[str, Any], *, dense: bool = False) -> Reading:
    """Return the sizes that papers' formulas use. Arguments and errors as `family_ledger`."""
    return reading_of(architecture_of(config, dense=dense))
