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
    """Return the ledger of a model of this config.json on ``workload``, or with ``dense`` that of its
    dense twin: an MLP of the config's ``intermediate_size`` in place of experts.

    Every weight is trained. In phases with a cache, layers with a sliding window cache one window, and
    latent attention expands the whole cache into keys and values at every step.

    Raises:
        UserError: an unknown family (`FAMILIES` are known), or an impossible shape.
    """
    return ledger_of(architecture_of(config, dense=dense), workload)


def family_reading(config: Mapping[str, Any], *, dense: bool = False) -> Reading:
    """Return the sizes that papers' formulas use, of a model of this config.json or of its dense twin.

    Raises:
        UserError: an unknown family (`FAMILIES` are known), or an impossible shape.
    """
    return reading_of(architecture_of(config, dense=dense))
