"""Data of the viewer of routing: the tokens of a held-out passage that each layer processes."""

from collections.abc import Iterable
from typing import Any

from modbench.records.sections import FirstChoice, Selected
from modbench.report.routing.cases import RoutingCase, layers_of, with_passage


def passages(all_cases: Iterable[RoutingCase]) -> dict[str, Any] | None:
    """Texts of tokens and, for each scheme, its layers: None, all tokens are processed; a string of 0
    and 1 by the causal rule and one by the training rule; or the first expert of each token, -1 without
    one. None if no record has a passage."""
    cases = with_passage(all_cases)
    texts: list[list[str]] = []
    schemes = []
    for case in cases:
        passage = case.passage
        assert passage is not None
        if passage.texts not in texts:
            texts.append(passage.texts)
        training = {layer.layer: layer.selected for layer in passage.topk}
        schemes.append(
            {
                "name": case.name,
                "text": texts.index(passage.texts),
                "layers": [_layer(layer, training) for _, layer in layers_of(case)],
            }
        )
    return {"texts": texts, "schemes": schemes} if schemes else None


def _layer(layer: Selected | FirstChoice | None, training: dict[int, str]) -> Any:
    if layer is None:
        return None
    if isinstance(layer, FirstChoice):
        return {"experts": layer.first}
    return {"causal": layer.selected, "training": training.get(layer.layer, layer.selected)}
