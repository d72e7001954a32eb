"""A causal language model as its matrices: their FLOPs on a workload, and their parameters.

Every family is described by this, so that one ledger serves all.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from modbench.accounting.literature import Reading
from modbench.ledger import OUTSIDE, Flops, Key, Ledger, Workload, attention, matmul


@dataclass(frozen=True)
class Matrix:
    """A weight of (inner, columns) in ``copies``, of which each token uses ``met`` (its experts).
    ``again``: every step also applies it to all cached tokens."""

    component: str
    inner: int
    columns: int
    copies: int = 1
    met: int = 1
    again: bool = False

    @property
    def size(self) -> int:
        return self.inner * self.columns


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A block: its matrices, its attention, and its ``further`` parameters (biases, norms).

    ``head_width`` is that of queries and keys, ``value_width`` that of values. A token sees the last
    ``window`` tokens. With ``dropout`` on attention weights, training does not use the fused kernels.
    """

    matrices: tuple[Matrix, ...]
    heads: int
    key_heads: int
    head_width: int
    value_width: int
    window: int | None = None
    dropout: bool = False
    further: int = 0


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """``positions``: entries of a learned position embedding. ``further``: norms and biases outside all
    layers."""

    vocabulary: int
    width: int
    layers: tuple[Layer, ...]
    tied: bool
    further: int
    positions: int = 0


def ledger_of(model: Architecture, workload: Workload) -> Ledger:
    """Return the ledger of ``model`` on ``workload``."""
    # Layers of a kind are one object.
    kinds: dict[int, Ledger] = {}
    entries: dict[Key, Flops] = {}
    for number, layer in enumerate(model.layers):
        if id(layer) not in kinds:
            kinds[id(layer)] = _layer_ledger(layer, workload)
        for (_, component, direction), flops in kinds[id(layer)]:
            entries[number, component, direction] = flops
    head = matmul(
        workload, OUTSIDE, "head", rows=workload.scored, inner=model.width, columns=model.vocabulary
    )
    return Ledger(entries) + head


def reading_of(model: Architecture) -> Reading:
    """Return the sizes of ``model``; a shared expert's gate is a router. The embeddings include those of
    positions."""
    head = 0 if model.tied else model.vocabulary * model.width
    embedding = (model.vocabulary + model.positions) * model.width
    outside = embedding + head + model.further
    matrices = [matrix for layer in model.layers for matrix in layer.matrices]
    inside = sum(layer.further for layer in model.layers)
    first = model.layers[0]
    routers = [matrix for matrix in matrices if matrix.component == "router"]
    attention = [matrix for matrix in matrices if matrix.component.startswith("attention.")]
    return Reading(
        layers=len(model.layers),
        width=model.width,
        heads=first.heads,
        attention_width=first.heads * first.head_width,
        key_value_width=first.key_heads * first.head_width,
        attention_parameters=_met(attention),
        feed_forward_parameters=_met(matrices) - _met(attention) - _met(routers),
        router_parameters=_met(routers),
        vocabulary=model.vocabulary,
        parameters=outside + inside + sum(matrix.size * matrix.copies for matrix in matrices),
        active_parameters=outside + inside + _met(matrices),
        embedding_parameters=embedding,
        tied=model.tied,
    )


def _met(matrices: Iterable[Matrix]) -> int:
    return sum(matrix.size * matrix.met for matrix in matrices)


def _layer_ledger(layer: Layer, workload: Workload) -> Ledger:
    rows = {False: workload.slots, True: _cached_and_new(workload)}
    ledger = Ledger.sum(
        matmul(
            workload,
            0,
            matrix.component,
            rows=rows[matrix.again] * matrix.met,
            inner=matrix.inner,
            columns=matrix.columns,
        )
        for matrix in layer.matrices
    )
    ledger += attention(
        workload,
        0,
        heads=layer.heads,
        head_width=layer.head_width,
        value_width=layer.value_width,
        gradient=True,
        pairs=_pairs(layer.window, workload),
        # PyTorch has no fused CPU kernel for dropout.
        fused=not (layer.dropout and workload.phase == "train"),
    )
    return ledger + ledger.recomputed() if workload.checkpoint and workload.phase == "train" else ledger


def _cached_and_new(workload: Workload) -> int:
    """Rows of a matmul that each step applies to the whole cache."""
    if workload.phase == "decode":
        return workload.pairs().full
    wide = [new + past for new, past in zip(workload.lengths, workload.past, strict=True)]
    return workload.sequences * max(wide) if workload.padding else sum(wide)


def _pairs(window: int | None, workload: Workload) -> Flops:
    """Query-key pairs of a layer. A cache keeps at most one window of tokens, which makes ``full``
    smaller."""
    if window is None:
        return workload.pairs()
    needed = workload.pairs(window).model
    if workload.phase == "decode" and not workload.padding:
        return Flops(needed, needed)
    given = replace(workload, past=tuple(min(past, window - 1) for past in workload.past)).pairs(window)
    return Flops(needed, given.full, given.executed)
