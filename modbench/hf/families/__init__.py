"""Closed forms of published families of causal language models, from the dict of a config.json.

Pure Python: neither torch nor transformers is imported. A family computes what its model in transformers
computes; experts have no capacity limit.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from modbench.hf.families.config import (
    FAMILIES,
    Reading,
    defaults_taken,
    ignored_keys,
    load_config,
    read_config,
    stated_length,
)
from modbench.hf.families.layers import Layer, Matrix, layers_of, norm_parameters
from modbench.ledger import OUTSIDE, Ledger, Workload, matmul

__all__ = [
    "FAMILIES",
    "defaults_taken",
    "family_ledger",
    "family_reading",
    "head_ledger",
    "ignored_keys",
    "ledgers_of_layers",
    "load_config",
    "stated_length",
]


def family_ledger(config: Mapping[str, Any], workload: Workload, *, dense: bool = False) -> Ledger:
    """Return the ledger of a model of this config.json on ``workload``, all its weights trained. With
    ``dense``, an MLP of the config's ``intermediate_size`` replaces experts. Raise a `UserError` if the
    family (not one of `FAMILIES`) is unknown, or the shape impossible."""
    layers = layers_of(read_config(config), dense=dense)
    ledgers = {layer: layer.ledger(workload) for layer in set(layers)}
    inside = Ledger.sum(_at(number, ledgers[layer]) for number, layer in enumerate(layers))
    return inside + head_ledger(config, workload)


def ledgers_of_layers(config: Mapping[str, Any]) -> list[Callable[[Workload], Ledger]]:
    """Return the part of `family_ledger` that belongs to each layer. Raise a `UserError` as there."""
    return [partial(_layer_ledger, *each) for each in enumerate(layers_of(read_config(config)))]


def head_ledger(config: Mapping[str, Any], workload: Workload) -> Ledger:
    """Return the part of `family_ledger` that belongs to the head. Raise a `UserError` as there."""
    read = read_config(config)
    width, vocabulary = read.hidden_size, read.vocab_size
    return matmul(workload, OUTSIDE, "head", rows=workload.scored, inner=width, columns=vocabulary)


def family_reading(config: Mapping[str, Any], *, dense: bool = False) -> Reading:
    """Return the sizes that papers' formulas use; a shared expert's gate is a router. Arguments and
    errors as `family_ledger`."""
    read = read_config(config)
    layers = layers_of(read, dense=dense)
    head = read.vocab_size * read.hidden_size
    vectors = sum(layer.further for layer in layers) + norm_parameters(read)
    others = head * (1 if read.tie_word_embeddings else 2) + vectors
    others += (read.max_position_embeddings or 0) * read.hidden_size
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    routers = _met(m for m in matrices if m.component == "router")
    attention = _met(m for m in matrices if m.component.startswith("attention."))
    return Reading(
        layers=len(layers),
        heads=layers[0].heads,
        attention_width=layers[0].heads * layers[0].head_width,
        attention_parameters=attention,
        feed_forward_parameters=_met(matrices) - attention - routers,
        router_parameters=routers,
        head_parameters=head,
        vector_parameters=vectors,
        parameters=others + sum(matrix.size * matrix.copies for matrix in matrices),
        active_parameters=others + _met(matrices),
    )


def _layer_ledger(number: int, layer: Layer, workload: Workload) -> Ledger:
    return _at(number, layer.ledger(workload))


def _at(number: int, ledger: Ledger) -> Ledger:
    """Return the ``ledger`` of a layer as that of layer ``number``."""
    return Ledger({(number, part, way): flops for (_, part, way), flops in ledger})


def _met(matrices: Iterable[Matrix]) -> int:
    return sum(matrix.size * matrix.met for matrix in matrices)
