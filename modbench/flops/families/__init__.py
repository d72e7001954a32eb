"""Closed forms of published families of causal language models, from the dict of a config.json.

Pure Python: neither torch nor transformers is imported. What a family computes is what its model in
transformers computes, experts without a capacity limit.
"""

from collections.abc import Mapping
from typing import Any

from modbench.flops.families.architecture import FamilyShape, ledger_of, shape_of
from modbench.flops.families.defaults import FAMILIES
from modbench.flops.families.layers import architecture_of
from modbench.flops.families.source import load_config
from modbench.flops.ledger import Ledger, Load

__all__ = ["FAMILIES", "FamilyShape", "family_ledger", "family_shape", "load_config"]


def family_ledger(config: Mapping[str, Any], load: Load) -> Ledger:
    """What a model of this config.json spends on ``load``, by layer, component and direction.

    Every weight is trained. In phases with a cache, layers with a sliding window keep no more than they
    see, and latent attention makes keys and values of the whole cache at every step.

    Raises:
        UserError: a family that isn't known (`FAMILIES` are), or a shape that can't be.
    """
    return ledger_of(architecture_of(config)[1], load)


def family_shape(config: Mapping[str, Any]) -> FamilyShape:
    """Sizes and parameter counts of a model of this config.json.

    Raises:
        UserError: a family that isn't known (`FAMILIES` are), or a shape that can't be.
    """
    return shape_of(*architecture_of(config))
