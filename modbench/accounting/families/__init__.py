"""Closed forms of published families of causal language models, from the dict of a config.json.

Pure Python: neither torch nor transformers is imported. What a family computes is what its model in
transformers computes, experts without a capacity limit.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from modbench.accounting.families.architecture import FamilyShape, ledger_of, shape_of
from modbench.accounting.families.defaults import FAMILIES
from modbench.accounting.families.layers import architecture_of
from modbench.accounting.families.source import load_config, misspelt
from modbench.accounting.literature import Reading
from modbench.ledger import Ledger, Workload

__all__ = [
    "FAMILIES",
    "FamilyShape",
    "family_ledger",
    "family_reading",
    "family_shape",
    "load_config",
    "misspelt",
]


def family_ledger(config: Mapping[str, Any], workload: Workload, *, dense: bool = False) -> Ledger:
    """What a model of this config.json spends on ``workload``, by layer, component and direction; with
    ``dense``, its dense twin: an MLP of the config's ``intermediate_size`` in place of experts.

    Every weight is trained. In phases with a cache, layers with a sliding window keep no more than they
    see, and latent attention makes keys and values of the whole cache at every step.

    Raises:
        UserError: a family that isn't known (`FAMILIES` are), or a shape that can't be.
    """
    return ledger_of(architecture_of(config, dense=dense)[1], workload)


def family_shape(config: Mapping[str, Any], *, dense: bool = False) -> FamilyShape:
    """Sizes and parameter counts of a model of this config.json, or of its dense twin.

    Raises:
        UserError: a family that isn't known (`FAMILIES` are), or a shape that can't be.
    """
    return shape_of(*architecture_of(config, dense=dense))


def family_reading(config: Mapping[str, Any], *, dense: bool = False) -> Reading:
    """What the papers' formulas read off a model of this config.json, or off its dense twin.

    Raises:
        UserError: a family that isn't known (`FAMILIES` are), or a shape that can't be.
    """
    shape = family_shape(config, dense=dense)
    return Reading(**{field.name: getattr(shape, field.name) for field in fields(Reading)})
