"""Routing over the course of training: packed decisions of a routed model on one fixed batch of held-out
text, and the rules that predict them. Packed is a bit per decision, or a few bytes per number, in
base64: no code is run to read it. Loads no torch, and numpy only to pack and unpack.

W windows, T tokens of a window, N = W * T tokens, E experts, L layers.
"""

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, Self, get_args

from annotated_types import Len
from pydantic import Field, model_validator

from modbench.records.line import Count, Part, Positive, Real, matching
from modbench.records.sections import Layer
from modbench.typed import SERIES, SERIES_WORDS

if TYPE_CHECKING:
    import numpy as np

#: What a layer decides: which tokens it processes, or which experts process a token.
Kind = Literal["depth", "experts"]
#: What the decisions of a layer are predicted from: the position, the token id, the id and the one
#: before, and under the dense model of equal shape and seed this token's loss and the norm of the change
#: that the layer makes.
Predictor = Literal["position", "id", "ids", "dense_loss", "dense_change"]
PREDICTORS: tuple[Predictor, ...] = get_args(Predictor)
#: The selection that a loss is taken under: the model's own, a random one, or a fitted rule.
Rule = Literal["own", "random"] | Predictor
RULES: tuple[Rule, ...] = ("own", "random", *PREDICTORS)
Share = Annotated[float, Field(ge=0, le=1)]
#: Most tokens of a batch and decisions of a record that are read: their arrays fit any memory.
_MOST_TOKENS, _MOST_DECISIONS = 2**18, 2**27


class TracedLayer(Part):
    """Decisions of a layer at one point: ``chosen``, a bit for each of ``experts``, no-op experts last,
    of each token that reaches them; of depth routing one bit per token, and ``experts`` is 1."""

    layer: Layer
    kind: Kind
    experts: Positive
    chosen: str
    gate: tuple[Real, Real] | None = None  #: mean and standard deviation, of what is chosen
    #: at the end, in float16: of each token that reaches the layer the gate, or that of its first expert
    gates: str | None = None
    added: Real | None = None  #: mean norm of the layer's update over that of the residual stream


class TracedPoint(Part):
    """Routing at one ``share`` of a run; ``series``: means of what a plugin's author records."""

    share: Share
    layers: list[TracedLayer]
    series: dict[Annotated[str, matching(SERIES, SERIES_WORDS)], Real] = Field(default_factory=dict)


class Traces(Part):
    """Routing of ``windows`` windows of ``sequence`` tokens under the causal rule at several points of a
    run, the last one at its end. ``ids``: four bytes per token; ``first``: number of the document that
    each window begins in; ``end``: the id that ends a document; ``losses`` at the end, in float16;
    ``changes``: of a model that routes nothing, the norms of what each layer adds, in float16."""

    windows: Annotated[int, Field(ge=1, le=_MOST_TOKENS)]
    sequence: Annotated[int, Field(ge=1, le=_MOST_TOKENS)]
    ids: str
    end: Count
    first: list[Count]
    losses: str
    points: Annotated[list[TracedPoint], Len(1)]
    changes: list[str]

    @model_validator(mode="after")
    def _check(self) -> Self:
        tokens, layers = self.windows * self.sequence, [of for p in self.points for of in p.layers]
        if tokens > _MOST_TOKENS or tokens * sum(of.experts for of in layers) > _MOST_DECISIONS:
            raise ValueError("it has too many tokens or experts")
        if len(self.first) != self.windows:
            raise ValueError(".first is not one document per window")
        if (shares := [point.share for point in self.points]) != sorted({*shares}):
            raise ValueError(".points must rise")
        self.arrays()
        return self

    def arrays(self) -> "TraceArrays":
        """The decoded arrays. Raises ValueError: a text is not base64 of as many bytes as it must be."""
        import numpy as np

        shape, tokens = (self.windows, self.sequence), self.windows * self.sequence

        def numbers(where: str, text: str, kind: str, count: int) -> "np.ndarray":
            try:
                raw = base64.b64decode(text, validate=True)
            except ValueError:
                raw = b""
            size = -(-count // 8) if kind == "bits" else count * np.dtype(kind).itemsize
            if len(raw) != size:
                raise ValueError(f".{where} is not {size} bytes in base64")
            if kind == "bits":
                return np.unpackbits(np.frombuffer(raw, "u1"), count=count).astype(bool)
            values = np.frombuffer(raw, kind)
            if not np.isfinite(values).all():
                raise ValueError(f".{where} has NaN or Inf")
            return values.astype(float if kind == "<f2" else np.int64)

        points = []
        for number, point in enumerate(self.points):
            decisions: dict[Place, Decisions] = {}
            for layer in sorted(point.layers, key=lambda of: (of.layer, of.kind)):
                where = f"points[{number}] layer {layer.layer} {layer.kind}"
                reached_N = np.ones(tokens, dtype=bool)
                if layer.kind == "experts" and (of_depth := decisions.get((layer.layer, "depth"))):
                    reached_N = of_depth.chosen_NE[:, 0]
                count = int(reached_N.sum())
                chosen_NE = np.zeros((tokens, layer.experts), dtype=bool)
                bits = numbers(f"{where} chosen", layer.chosen, "bits", count * layer.experts)
                chosen_NE[reached_N] = bits.reshape(-1, layer.experts)
                gates_N = np.full(tokens, np.nan, dtype=np.float32)
                if layer.gates is not None:
                    gates_N[reached_N] = numbers(f"{where} gates", layer.gates, "<f2", count)
                if (layer.layer, layer.kind) in decisions:
                    raise ValueError(f".{where} is there twice")
                decisions[layer.layer, layer.kind] = Decisions(chosen_NE, reached_N, gates_N)
            points.append(decisions)
        ids_WT = numbers("ids", self.ids, "<u4", tokens).reshape(shape)
        ends_WT = ids_WT == self.end
        return TraceArrays(
            ids_WT=ids_WT,
            documents_WT=np.array(self.first)[:, None] + ends_WT.cumsum(1) - ends_WT,
            losses_WT=numbers("losses", self.losses, "<f2", tokens).reshape(shape),
            points={point.share: of for point, of in zip(self.points, points, strict=True)},
            changes_LN=[numbers("changes", change, "<f2", tokens) for change in self.changes],
        )


def packed(values: "np.ndarray", kind: str = "bits") -> str:
    """``values`` in base64: booleans as ``bits``, or numbers as a ``kind`` of numpy; what is
    beyond float16 becomes its largest number, and NaN 0."""
    import numpy as np

    if kind == "<f2":
        most = float(np.finfo(np.float16).max)
        values = np.nan_to_num(values.astype(float), posinf=most, neginf=-most).clip(-most, most)
    raw = np.packbits(values) if kind == "bits" else np.ascontiguousarray(values, dtype=kind)
    return base64.b64encode(raw.tobytes()).decode()


#: Where decisions are taken.
Place = tuple[int, Kind]


@dataclass(frozen=True)
class Decisions:
    """Decisions of a layer: for each token those selected, (N, 1) bool, or its experts, (N, E); the
    tokens that reach the layer, (N,) bool; and their gates at the end, NaN where there is none."""

    chosen_NE: "np.ndarray"
    reached_N: "np.ndarray"
    gates_N: "np.ndarray"


@dataclass(frozen=True)
class TraceArrays:
    """The arrays of `Traces`. ``documents_WT``: document of each token; ``points``: decisions by share
    of the run, layer and kind; ``changes_LN``: one array per layer."""

    ids_WT: "np.ndarray"
    documents_WT: "np.ndarray"
    losses_WT: "np.ndarray"
    points: dict[float, dict[Place, Decisions]]
    changes_LN: "list[np.ndarray]" = field(default_factory=list)

    @property
    def end(self) -> dict[Place, Decisions]:
        """The decisions of the last point."""
        return self.points[max(self.points)]


class RuledLayer(Part):
    """Area under the ROC curve of each predictor of a layer's decisions; those of experts are means by
    load. A predictor for which nothing could be scored is absent."""

    layer: Layer
    kind: Kind
    auc: dict[Predictor, Share]


class Rules(Part):
    """How well simple rules predict the routing at the end, and validation losses in nats per token with
    the selection replaced by each rule, on the half of the ``windows`` that no rule was fitted on."""

    layers: list[RuledLayer]
    losses: dict[Rule, Real]
    windows: Positive
