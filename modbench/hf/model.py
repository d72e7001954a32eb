"""HubModel: a causal language model of Hugging Face transformers as a `LanguageModel`.

B sequences, T tokens, D model width, V vocabulary, R requested rows, N tokens.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from modbench.counting.counter import FlopCounter
from modbench.errors import FAULTS, UserError
from modbench.hf.attention import attention_without_masks
from modbench.hf.cache import CacheView, mask, windows_of
from modbench.hf.families import FAMILIES, family_ledger, family_reading
from modbench.hf.passes import cache_argument, make_fit_for_float64, make_fit_for_meta
from modbench.ledger import OUTSIDE, Ledger, Workload, labels
from modbench.model.context import INTEGERS, Context, host_lengths
from modbench.model.counted import counted_once
from modbench.model.generate import prefill
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.model.shape import TRANSFORMERS, HubConfig

#: Selects the rows of the head's input (B, T, D) whose logits are computed.
Select = Callable[[Tensor], Tensor]


class HubModel(LanguageModel):
    """``inner``, a causal language model of transformers, on tokens and contexts of ours. Experts of its
    own route by one rule, in training and prediction alike; its cache is ours
    (`modbench.hf.cache`)."""

    def __init__(self, config: HubConfig, inner: Any) -> None:
        super().__init__()
        self.config: HubConfig = config
        self.inner = inner
        self._windows = windows_of(inner.config)
        if inner.config._attn_implementation == "sdpa":
            inner.set_attn_implementation(attention_without_masks())
        self._cache_name = cache_argument(inner.forward)
        self._checkpoints = False

    @property
    def scheme(self) -> str:
        return TRANSFORMERS

    @property
    def embedding(self) -> nn.Embedding:  # type: ignore[override]
        return self.inner.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def layers(self) -> nn.ModuleList:  # type: ignore[override]
        base = self.inner.base_model
        lists = [part for part in base.children() if isinstance(part, nn.ModuleList)]
        # The layers of some, such as OPT, lie one part deeper.
        inner = (part for part in base.modules() if isinstance(part, nn.ModuleList))
        return max(lists, key=len) if lists else next(inner)

    @property
    def flops_source(self) -> Literal["closed form", "counted"]:
        return "closed form" if self.config.family in FAMILIES else "counted"

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """Return logits (B, T, V), or (B, 1, V) if the context asks for those of the last tokens. Raise
        a `UserError` as our decoder does."""
        last = context.logits == "last"
        select = partial(_last_tokens, lengths=context.lengths(tokens_BT)) if last else None
        return self._run(tokens_BT, context, select)  # type: ignore[no-any-return]

    def hidden(self, tokens_BT: Tensor, context: Context) -> Tensor:
        given: list[Tensor] = []

        def keep(x_BTD: Tensor) -> Tensor:
            given.append(x_BTD)
            return x_BTD[:, :1]

        self._run(tokens_BT, context, keep)
        last = context.logits == "last"
        return _last_tokens(given[0], context.lengths(tokens_BT)) if last else given[0]

    def logits_at(self, tokens_BT: Tensor, context: Context, rows_R: Tensor, places_R: Tensor) -> Tensor:
        return self._run(tokens_BT, context, lambda x_BTD: x_BTD[rows_R, places_R])  # type: ignore[no-any-return]

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, context: Context) -> Tensor:
        return self._cross_entropy(tokens_BT, targets_BT, context, "mean")

    @torch.no_grad()
    def losses(self, tokens_BT: Tensor, targets_BT: Tensor, context: Context) -> Tensor:
        return self._cross_entropy(tokens_BT, targets_BT, context, "none").view_as(targets_BT)

    def _cross_entropy(
        self, tokens_BT: Tensor, targets_BT: Tensor, context: Context, reduction: str
    ) -> Tensor:
        if targets_BT.shape != tokens_BT.shape or targets_BT.dtype not in INTEGERS:
            raise UserError(
                f"targets are of shape {tuple(targets_BT.shape)} and {targets_BT.dtype} for tokens of "
                f"shape {tuple(tokens_BT.shape)}; give each token one, int32 or int64"
            )
        logits_NV = self._run(tokens_BT, context).flatten(0, 1)
        wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        return F.cross_entropy(wide_NV, targets_BT.flatten().long(), reduction=reduction)

    def _run(self, tokens_BT: Tensor, context: Context, select: Select | None = None) -> Tensor:
        """Return the logits of the rows that ``select`` picks; None: of all tokens."""
        context.check(tokens_BT)
        cache, lengths = context.cache, context.lengths(tokens_BT)
        if cache is not None and context.selection != "causal":
            raise ValueError(f"selection '{context.selection}' with a cache; it must be 'causal'")
        if tokens_BT.is_meta:
            make_fit_for_meta(self.inner)
        elif self.embedding.weight.dtype == torch.float64:
            make_fit_for_float64(self.inner)
        options: dict[str, Any] = {"use_cache": cache is not None, "return_dict": True}
        options |= self._masks(tokens_BT, context, lengths)
        if cache is not None:
            options[self._cache_name] = self._view(cache, lengths)
        if hasattr(self.inner.config, "output_router_logits"):  # which asks for a loss of training
            trains = self.training and cache is None
            options["output_router_logits"] = trains and self.inner.config.output_router_logits
        options |= self._told(context)
        with self._head(select), self._checkpointed(context):
            out = self.inner(input_ids=tokens_BT, **options)
        if cache is not None:
            cache.advance(lengths)
        if getattr(out, "aux_loss", None) is not None:  # where the config asks for it
            balance = self.inner.config.router_aux_loss_coef * out.aux_loss
            context.trace.loss(OUTSIDE, "balance", balance)
        return out.logits  # type: ignore[no-any-return]

    def _view(self, cache: Cache, lengths: list[int]) -> CacheView:
        """Return ``cache`` as the layers of a pass with ``lengths`` new tokens see it."""
        return CacheView(cache, self._windows, lengths)

    def _told(self, context: Context) -> dict[str, Any]:
        """Return what else of ``context`` the model is told."""
        return {}

    def _masks(self, tokens_BT: Tensor, context: Context, lengths: list[int]) -> dict[str, Any]:
        """Return masks and positions; none for whole sequences from the start. Padding on the right
        needs no mask, since no token looks ahead. Eager attention reads values of the device to make
        its own, which the meta device lacks."""
        sequences, tokens = tokens_BT.shape
        past = [0] * sequences if context.cache is None else list(context.cache.read)
        narrow = any(window is not None and window <= tokens for window in self._windows)
        eager = self.inner.config._attn_implementation == "eager"
        if not any(past) and not narrow and not (eager and tokens_BT.is_meta):
            return {}
        counted = tokens_BT.is_meta and labels.listeners() and not eager
        on = torch.device("cpu") if counted else tokens_BT.device  # the counter reads values of masks
        made = {
            window: mask(past, lengths, tokens, window, on)
            if eager or any(past) or window is not None
            else None
            for window in set(self._windows)
        }
        if eager:  # which adds it to the scores
            dtype = next(self.inner.parameters()).dtype
            lowest = torch.finfo(dtype).min
            made = {
                window: torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, lowest)
                for window, seen in made.items()
                if seen is not None
            }
        kinds = getattr(self.inner.config, "layer_types", None) or ()
        each: Any = next(iter(made.values()))
        if len(made) > 1:
            each = {kind: made[window] for kind, window in zip(kinds, self._windows, strict=True)}
        options = {"attention_mask": each}
        if context.cache is not None:
            options["position_ids"] = context.cache.positions(tokens, tokens_BT.device)
        return options

    @contextmanager
    def _head(self, select: Select | None) -> Iterator[None]:
        """Context in which the head gets the rows that ``select`` picks."""
        if select is None:
            yield
            return

        def picked(head: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (select(given[0]), *given[1:])

        hook = self.inner.get_output_embeddings().register_forward_pre_hook(picked)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _checkpointed(self, context: Context) -> Iterator[None]:
        """Context in which each layer keeps only its input for the backward pass, if asked for."""
        if context.checkpoint != self._checkpoints:  # torch.compile meets no change
            self._checkpoints = context.checkpoint
            for module in self.inner.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = context.checkpoint
                    module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
        # The whole layer runs again, as in our decoder, not only up to the last tensor needed.
        with set_checkpoint_early_stop(False) if context.checkpoint else nullcontext():
            yield

    def ledger(self, workload: Workload) -> Ledger:
        """Return the closed form of the family, or for a family without one what is counted on the meta
        device. All weights are trained."""
        if self.config.family in FAMILIES:
            return family_ledger(self.config.config, workload)
        return counted_ledger(self, workload)

    def parameter_count(self, kind: Literal["total", "active"] = "total") -> int:
        """Raise a `UserError` for active parameters of experts whose number per token can't be seen."""
        total = sum(parameter.numel() for parameter in self.parameters())
        if kind == "total":
            return total
        if self.config.family in FAMILIES:
            reading = family_reading(self.config.config)
            return total - (reading.parameters - reading.active_parameters)
        return total - counted_once(self, "idle parameters", _idle_parameters)

    def kv_bytes_per_token(self) -> int:
        _, cache = prefill(
            self, torch.zeros(1, 1, dtype=torch.long, device=self.embedding.weight.device)
        )
        return cache.bytes


def _last_tokens(x_BTD: Tensor, lengths: list[int]) -> Tensor:
    """Return each sequence's last real token, (B, 1, D)."""
    if min(lengths) == x_BTD.shape[1]:
        return x_BTD[:, -1:]
    index_B11 = torch.tensor(lengths, device=x_BTD.device)[:, None, None] - 1
    return x_BTD.gather(1, index_B11.expand(-1, 1, x_BTD.shape[2]))


def _idle_parameters(twin: HubModel) -> int:
    """Return the parameters of experts that a token is not sent to, from the indices (N, K) that the
    experts of ``twin`` get for one token. Raise a `UserError` if some get none."""
    parts = [part for part in twin.modules() if getattr(part, "num_experts", 0)]
    experts = [part for part in parts if any(p.dim() > 2 for p in part.parameters(recurse=False))]
    idle: dict[nn.Module, int] = {}

    def see(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for given in (*args, *kwargs.values()):
            if isinstance(given, Tensor) and given.dtype in INTEGERS and given.dim() == 2:
                held = sum(weight.numel() for weight in part.parameters(recurse=False))
                idle[part] = held - held // int(part.num_experts) * given.shape[1]  # type: ignore[arg-type]

    hooks = [part.register_forward_pre_hook(see, with_kwargs=True) for part in experts]
    with suppress(*FAULTS):  # of a forward pass that the meta device can't run
        _pass(twin, Workload.uniform(1, 1))
    for hook in hooks:
        hook.remove()
    if len(idle) < max(len(experts), bool(parts)):
        raise UserError(
            f"active parameters of a {twin.config.family} are unknown, since its experts are not told "
            "which of them a token is sent to; use parameter_count('total')"
        )
    return sum(idle.values())


def counted_ledger(model: LanguageModel, workload: Workload) -> Ledger:
    """Return the FLOPs of ``model`` for ``workload``. Experts process all that is sent to them, so
    counts of routing play no part."""
    plain = replace(workload, counts={})
    case = (plain.lengths, plain.past, plain.phase, plain.padding, plain.checkpoint)
    return counted_once(model, case, lambda twin: Ledger.sum(_pieces(twin, plain)))


def _pieces(twin: LanguageModel, load: Workload) -> Iterator[Ledger]:
    """Yield the ledgers that add up to that of ``load``: of all sequences in one pass where they are
    alike or padding counts, else of each sequence."""
    if load.phase == "decode" and max(load.lengths) > 1:
        for step in range(max(load.lengths)):
            lengths = tuple(int(n > step) for n in load.lengths)
            past = tuple(p + min(step, each) for p, each in zip(load.past, load.lengths, strict=True))
            yield from _pieces(twin, replace(load, lengths=lengths, past=past))
        return
    rows = Counter(zip(load.lengths, load.past, strict=True))
    if load.padding or len(rows) == 1:
        yield _pass(twin, load)
        return
    for (length, before), times in rows.items():
        if length:
            yield _pass(twin, replace(load, lengths=(length,), past=(before,))) * times


def _pass(twin: LanguageModel, load: Workload) -> Ledger:
    train = load.phase == "train"
    cached = any(load.past) or load.phase in ("prefill", "decode")
    cache = Cache(load.sequences) if cached else None
    twin.train(train)
    with torch.set_grad_enabled(train):
        if cache is not None and any(load.past):
            with FlopCounter():
                twin(*_inputs([max(1, tokens) for tokens in load.past], cache, load))
        inputs_BT, context = _inputs(load.lengths, cache, load)
        with FlopCounter() as counter:
            logits_BTV = twin(inputs_BT, context)
            if train:
                F.cross_entropy(logits_BTV.flatten(0, 1).float(), inputs_BT.flatten()).backward()
    return counter.ledger


def _inputs(lengths: Sequence[int], cache: Cache | None, load: Workload) -> tuple[torch.Tensor, Context]:
    tokens_BT = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device="meta")
    return tokens_BT, Context(
        selection="topk" if cache is None else "causal",
        lengths_B=host_lengths(lengths, tokens_BT.device) if min(lengths) < max(lengths) else None,
        cache=cache,
        logits="last" if load.phase == "prefill" else "all",
        checkpoint=load.checkpoint,
    )
