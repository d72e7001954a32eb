"""The timed cases of a model (forward pass, training step, prefill, decode) and their FLOPs.

B sequences, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from modbench.ledger import CONVENTIONS, Ledger, Phase, Workload
from modbench.measure.time_config import TimeConfig
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder
from modbench.train.compiled import allow_programs, compile_for_decoding, compiles, forward_of, losses_of
from modbench.train.config import TrainConfig
from modbench.train.loop import build_optimizer, training_step
from modbench.train.numerics import autocast

Run = Callable[[], Sequence[Trace]]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """``run`` runs the case once and returns the traces of its forward passes; ``before`` is called
    before each run, untimed."""

    run: Run
    before: Callable[[], object] = lambda: None


@dataclass(frozen=True, kw_only=True)
class BenchmarkCase:
    """A run processes ``tokens`` new tokens of each of ``sequences`` sequences, after ``past`` cached
    ones. ``prepare`` may change the model; if it runs out of memory, later cases can still be
    prepared."""

    phase: Phase
    sequences: int
    tokens: int
    past: int = 0
    prepare: Callable[[], Prepared]

    @property
    def name(self) -> str:
        batch = f" x {self.sequences}"
        if self.phase == "decode":
            return f"decode after {self.past}{batch}"
        return f"prefill {self.tokens}{batch}" if self.phase == "prefill" else self.phase

    def flops(self, model: RoutedDecoder, traces: Sequence[Trace]) -> dict[str, dict[str, int]]:
        """FLOPs of a run under each convention: nominal, realised by ``traces``, and dispatched (with
        padded slots)."""
        each = self.tokens // len(traces)

        def spent(padding: bool) -> Ledger:
            return Ledger.sum(
                model.loss_ledger(
                    Workload.uniform(
                        self.sequences,
                        each,
                        self.phase,
                        self.past + number * each,
                        counts=trace.counts,
                        padding=padding,
                    )
                )
                for number, trace in enumerate(traces)
            )

        ledgers = {
            "nominal": model.loss_ledger(
                Workload.uniform(self.sequences, self.tokens, self.phase, self.past)
            ),
            "realised": spent(padding=False),
            "dispatched": spent(padding=True),
        }
        return {
            kind: {convention: ledger.total(convention) for convention in CONVENTIONS}
            for kind, ledger in ledgers.items()
        }


def training_cases(
    model: RoutedDecoder, config: TimeConfig, train: TrainConfig, dtype: torch.dtype
) -> tuple[BenchmarkCase, ...]:
    """Forward pass and training step of one batch of random tokens under the training rule, as
    `modbench.train` runs them."""
    on = next(model.parameters()).device
    passes, losses = forward_of(model, config.compile), losses_of(model, config.compile)

    def batch() -> tuple[Tensor, Tensor]:
        batch_BT = random_tokens(model, train.batch, train.sequence + 1)
        return batch_BT[:, :-1].contiguous(), batch_BT[:, 1:].contiguous()

    def forward() -> Prepared:
        model.eval()
        tokens_BT, _ = batch()

        def run() -> list[Trace]:
            context = Context(selection="topk", forced_balance=config.forced_balance)
            with torch.no_grad(), autocast(dtype, on):
                passes(tokens_BT, context)
            return [context.trace]

        return Prepared(run=run)

    def step() -> Prepared:
        model.train()
        both, forced = batch(), config.forced_balance
        optimizer = build_optimizer(model, train)

        def run() -> list[Trace]:
            _, context = training_step(
                model, optimizer, train, both, dtype, forced_balance=forced, losses=losses
            )
            return [context.trace]

        return Prepared(run=run)

    sequences, tokens = train.batch, train.sequence
    return (
        BenchmarkCase(phase="forward", sequences=sequences, tokens=tokens, prepare=forward),
        BenchmarkCase(phase="train", sequences=sequences, tokens=tokens, prepare=step),
    )


def inference_cases(
    model: RoutedDecoder, config: TimeConfig, dtype: torch.dtype
) -> tuple[BenchmarkCase, ...]:
    """Prefill and decode cases under the causal rule with weights in ``dtype``; on a GPU, if ``config``
    compiles, decoding is compiled, too (`compile_for_decoding`)."""

    @cache
    def serve() -> None:
        model.zero_grad(set_to_none=True)
        model.eval().to(dtype)

    def prefill(length: int) -> Prepared:
        serve()
        compile_layers(model, config)
        tokens_BT = random_tokens(model, config.prefill_batch, length)
        return Prepared(
            run=lambda: [_read(model, tokens_BT, Cache(len(tokens_BT)), config, logits="last")]
        )

    def decode(sequences: int, past: int) -> Prepared:
        serve()
        eager_layers(model)
        return _decoding(model, config, sequences, past)

    prefills = [
        BenchmarkCase(
            phase="prefill",
            sequences=config.prefill_batch,
            tokens=length,
            prepare=partial(prefill, length),
        )
        for length in config.prefill
    ]
    decodings = [
        BenchmarkCase(
            phase="decode",
            sequences=sequences,
            tokens=config.decode_tokens,
            past=past,
            prepare=partial(decode, sequences, past),
        )
        for sequences in config.decode_batches
        for past in config.decode_past
    ]
    return *prefills, *decodings


def _decoding(model: RoutedDecoder, config: TimeConfig, sequences: int, past: int) -> Prepared:
    tokens, on = config.decode_tokens, next(model.parameters()).device
    if is_compiled(model, config) and on.type == "cuda":
        compile_for_decoding(model)
    kept = Cache(sequences)
    tokens_BT = random_tokens(model, sequences, past + tokens)
    _read(model, tokens_BT[:, :past], kept, config, logits="last")
    filled = kept.mark()
    steps = [tokens_BT[:, place : place + 1].contiguous() for place in range(past, past + tokens)]

    def run() -> list[Trace]:
        return [_read(model, step_B1, kept, config, logits="all") for step_B1 in steps]

    return Prepared(run=run, before=lambda: kept.rewind(filled))


@torch.no_grad()
def _read(
    model: RoutedDecoder, tokens_BT: Tensor, cache: Cache, config: TimeConfig, *, logits: Any
) -> Trace:
    context = Context(
        selection="causal", cache=cache, logits=logits, forced_balance=config.forced_balance
    )
    model(tokens_BT, context)
    return context.trace


def random_tokens(model: RoutedDecoder, sequences: int, tokens: int) -> Tensor:
    """Random token ids (B, T), the same on each call."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(model.config.vocabulary, (sequences, tokens), generator=generator)
    return tokens_BT.to(next(model.parameters()).device)


def is_compiled(model: RoutedDecoder, config: TimeConfig) -> bool:
    """Return True if ``config`` compiles on the model's device."""
    return compiles(config.compile, next(model.parameters()).device)


def compile_layers(model: RoutedDecoder, config: TimeConfig) -> None:
    """Compile each layer of ``model`` in place if ``config`` asks for it; under the causal rule shapes
    depend on data, so the whole model cannot be one program."""
    if not is_compiled(model, config) or any("forward" in vars(layer) for layer in model.layers):
        return
    import torch._dynamo.config as dynamo

    # One program per layer and shape. A layer that silently ran eager would spoil the comparison.
    allow_programs(2 * len(model.layers) * (2 + len(config.prefill)))
    dynamo.fail_on_recompile_limit_hit = True
    for layer in model.layers:
        vars(layer)["forward"] = torch.compile(layer.forward, dynamic=False)


def eager_layers(model: RoutedDecoder) -> None:
    """Undo `compile_layers`: the cache grows with each token, which would recompile each time."""
    for layer in model.layers:
        vars(layer).pop("forward", None)
