"""RoutedHubModel: a model of transformers with depth routing (`modbench.hf.retrofit`) as a
`LanguageModel`.

B sequences, T tokens.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from modbench.errors import UserError
from modbench.hf.cache import CacheView, RoutedCacheLayer
from modbench.hf.families import FAMILIES, head_ledger, ledgers_of_layers
from modbench.hf.model import HubModel
from modbench.hf.retrofit.apply import retrofit
from modbench.hf.retrofit.build import everything_selected, routers_of
from modbench.hf.retrofit.layer import CONTEXT, RetrofitRouter
from modbench.ledger import Counts, Ledger, Workload
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.model.shape import HubConfig
from modbench.routing.depth_router import DepthScheme
from modbench.routing.plugin_fault import authors_code

_RETROFITTED = ", ".join(sorted(set(FAMILIES) - {"gpt2"}))


class RoutedHubModel(HubModel):
    """``inner``, retrofitted with ``router``. The rule and the trace of a pass are those of its context;
    a routed layer caches its selected tokens in the cache of the context."""

    def __init__(self, config: HubConfig, inner: Any, router: DepthScheme) -> None:
        super().__init__(config, inner)
        self.router = router
        self._parts: list[RetrofitRouter] = routers_of(inner)
        self._ledgers = ledgers_of_layers(config.config)
        for part in self._parts:
            part.block = _Block(self._ledgers[part.layer])  # type: ignore[assignment]

    @property
    def scheme(self) -> str:
        return self.router.name

    @property
    def flops_source(self) -> Literal["closed form", "counted"]:
        closed = all(part.has_closed_form for part in self._parts)
        return "closed form" if closed else "counted"

    def _view(self, cache: Cache, lengths: list[int]) -> CacheView:
        view = super()._view(cache, lengths)
        for part in self._parts:
            view.layers[part.layer] = RoutedCacheLayer(part.layer, cache.sequences, None, cache)
        return view

    def _told(self, context: Context) -> dict[str, Any]:
        return {CONTEXT: context}

    def ledger(self, workload: Workload) -> Ledger:
        """Return the closed form: that of the family for dense layers; for routed ones, of the router,
        and of the family for the tokens selected. All weights are trained."""
        routed = {part.layer: part for part in self._parts}
        # A layer runs again as a whole, its router included.
        once = replace(workload, checkpoint=False)
        ledgers = [head_ledger(self.config.config, workload)]
        with authors_code(self.router, "ledger"):
            for number, dense in enumerate(self._ledgers):
                part = routed[number].ledger(once) if number in routed else dense(once)
                ledgers.append(part)
                if workload.checkpoint and any(way == "backward" for (_, _, way), _ in part):
                    ledgers.append(part.recomputed())
        return Ledger.sum(ledgers)

    def nominal_counts(self, workload: Workload) -> Counts:
        return _joined(part.nominal_counts(workload) for part in self._parts)

    def expected_counts(self, workload: Workload) -> Counts:
        return _joined(part.expected_counts(workload) for part in self._parts)

    def kv_bytes_per_token(self) -> int:
        with everything_selected(self.inner):
            return super().kv_bytes_per_token()


class _Block(nn.Module):
    """The FLOPs of a routed layer of transformers, where `DepthRouted` expects a block."""

    has_data_dependent_shapes = False

    def __init__(self, ledger: Callable[[Workload], Ledger]) -> None:
        super().__init__()
        self.ledger = ledger

    def nominal_counts(self, workload: Workload) -> Counts:
        return {}

    def expected_counts(self, workload: Workload) -> Counts:
        return {}


def retrofitted(shape: HubConfig, inner: Any, router: DepthScheme, seed: int) -> RoutedHubModel:
    """Retrofit ``inner``, the model of ``shape``, with ``router``, whose initial weights ``seed`` fixes.
    Raise a `UserError` if it can't be, or the FLOPs of its selected tokens have no closed form."""
    if shape.family not in FAMILIES or shape.code is not None:
        raise UserError(
            f"router '{router.name}' and a model of model_type '{shape.family}': the FLOPs of its "
            "selected tokens have no closed form; remove the router, or give a model of "
            f"{_RETROFITTED}"
        )
    if shape.family == "gpt2":
        raise UserError(
            f"router '{router.name}': layers of GPT-2 have no positions as an argument, which "
            f"retrofit gathers; remove the router, or give a model of {_RETROFITTED}"
        )
    model = retrofit(inner, router, seed=seed)
    for part in routers_of(model):
        window = model.base_model.layers[part.layer].modbench_window
        if window is not None:
            raise UserError(
                f"router '{router.name}' can't route layer {part.layer}, which has a sliding window of "
                f"{window}; set sliding_window to null in its config.json, or route other layers by "
                "every and offset"
            )
    return RoutedHubModel(shape, model, router)


def _joined(each: Iterable[Counts]) -> Counts:
    return {key: counts for part in each for key, counts in part.items()}
