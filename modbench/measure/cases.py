"""What is timed of a model: forward pass, training step, prefill and decoding through a cache, and the
FLOPs of each.

B sequences, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modbench.flops.ledger import CONVENTIONS, Ledger, Load, Phase
from modbench.measure.time_config import TimeConfig
from modbench.model.cache import Cache
from modbench.model.context import Context, Trace
from modbench.model.decode_graphs import cuda_graphs
from modbench.model.decoder import Decoder
from modbench.train.compiled import compiles, forward_of, losses_of
from modbench.train.compiled_check import check_gradients
from modbench.train.config import TrainConfig
from modbench.train.loop import build_optimizer, training_step
from modbench.train.numerics import autocast

Run = Callable[[], Sequence[Trace]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """``run`` does it once and gives the traces of its forward passes; ``before`` comes before each run.
    A run is ``tokens`` new tokens of each of ``sequences`` sequences, after ``past`` cached ones."""

    phase: Phase
    sequences: int
    tokens: int
    past: int = 0
    run: Run
    before: Callable[[], object] = lambda: None

    @property
    def name(self) -> str:
        many = f" x {self.sequences}"
        if self.phase == "decode":
            return f"decode after {self.past}{many}"
        return f"prefill {self.tokens}{many}" if self.phase == "prefill" else self.phase

    def flops(self, model: Decoder, traces: Sequence[Trace]) -> dict[str, dict[str, int]]:
        """Of a run under each convention: nominal, as ``traces`` realised it, and as it was dispatched,
        padded slots included."""
        each = self.tokens // len(traces)

        def spent(padding: bool) -> Ledger:
            return Ledger.sum(
                model.ledger(
                    Load.uniform(
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
            "nominal": model.ledger(Load.uniform(self.sequences, self.tokens, self.phase, self.past)),
            "realised": spent(padding=False),
            "dispatched": spent(padding=True),
        }
        return {
            kind: {convention: ledger.total(convention) for convention in CONVENTIONS}
            for kind, ledger in ledgers.items()
        }


def training_cases(
    model: Decoder, config: TimeConfig, train: TrainConfig, dtype: torch.dtype
) -> Iterator[Case]:
    """Forward pass and training step of one batch of made-up tokens under the training rule, as
    `modbench.train` runs them. Changes the model.

    Raises:
        UserError: compiled, the model would not learn what it learns as written.
    """
    on = next(model.parameters()).device
    passes, losses = forward_of(model, config.compile), losses_of(model, config.compile)
    batch_BT = made_up(model, train.batch, train.sequence + 1)
    batch = batch_BT[:, :-1].contiguous(), batch_BT[:, 1:].contiguous()
    sequences, tokens = train.batch, train.sequence

    def forward() -> list[Trace]:
        context = Context(selection="topk", forced_balance=config.forced_balance)
        with torch.no_grad(), autocast(dtype, on):
            passes(batch[0], context)
        return [context.trace]

    model.eval()
    yield Case(phase="forward", sequences=sequences, tokens=tokens, run=forward)
    model.train()
    if is_compiled(model, config):
        check_gradients(model, losses, batch, dtype, forced_balance=config.forced_balance)
    optimizer = build_optimizer(model, train)

    def step() -> list[Trace]:
        _, context = training_step(
            model,
            optimizer,
            train,
            batch,
            dtype,
            forced_balance=config.forced_balance,
            losses=losses,
        )
        return [context.trace]

    yield Case(phase="train", sequences=sequences, tokens=tokens, run=step)
    optimizer.zero_grad(set_to_none=True)


def inference_cases(model: Decoder, config: TimeConfig, dtype: torch.dtype) -> Iterator[Case]:
    """Prefill, and decoding through a cache that a prefill filled, under the causal rule with weights in
    ``dtype``; on a GPU, if ``config`` compiles, by CUDA graphs. Changes the model."""
    model.eval().to(dtype)
    compile_layers(model, config)
    for length in config.prefill:
        tokens_BT = made_up(model, config.prefill_batch, length)

        def prefill(tokens_BT: Tensor = tokens_BT) -> list[Trace]:
            return [_read(model, tokens_BT, Cache(len(tokens_BT)), config, logits="last")]

        yield Case(phase="prefill", sequences=config.prefill_batch, tokens=length, run=prefill)
    for sequences in config.decode_batches:
        for past in config.decode_past:
            yield _decoding(model, config, sequences, past)


def _decoding(model: Decoder, config: TimeConfig, sequences: int, past: int) -> Case:
    tokens, on = config.decode_tokens, next(model.parameters()).device
    graphs = cuda_graphs(on) if is_compiled(model, config) and on.type == "cuda" else None
    cache = Cache(sequences, graphs)
    tokens_BT = made_up(model, sequences, past + tokens)
    with _uncompiled(model, config):
        _read(model, tokens_BT[:, :past], cache, config, logits="last")
    filled = cache.mark()
    steps = [tokens_BT[:, place : place + 1].contiguous() for place in range(past, past + tokens)]

    def decode() -> list[Trace]:
        with _uncompiled(model, config):
            return [_read(model, step_B1, cache, config, logits="all") for step_B1 in steps]

    return Case(
        phase="decode",
        sequences=sequences,
        tokens=tokens,
        past=past,
        run=decode,
        before=lambda: cache.rewind(filled),
    )


@torch.no_grad()
def _read(model: Decoder, tokens_BT: Tensor, cache: Cache, config: TimeConfig, *, logits: Any) -> Trace:
    context = Context(
        selection="causal", cache=cache, logits=logits, forced_balance=config.forced_balance
    )
    model(tokens_BT, context)
    return context.trace


def made_up(model: Decoder, sequences: int, tokens: int) -> Tensor:
    """The same random token ids (B, T) each time."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(model.config.vocabulary, (sequences, tokens), generator=generator)
    return tokens_BT.to(next(model.parameters()).device)


def is_compiled(model: Decoder, config: TimeConfig) -> bool:
    """Whether ``config`` asks for it on the model's device."""
    return compiles(config.compile, next(model.parameters()).device)


def compile_layers(model: Decoder, config: TimeConfig) -> None:
    """Compile each layer of ``model`` in place, if that is asked for: under the causal rule the host
    has to know who enters before a layer can go on."""
    if not is_compiled(model, config):
        return
    import torch._dynamo.config as dynamo

    # One program to each shape, for all layers: what is timed has few shapes, and each is run often.
    dynamo.allow_unspec_int_on_nn_module = True
    dynamo.recompile_limit = 8 * (2 + len(config.prefill))
    for layer in model.layers:
        layer.compile(dynamic=False)


def _uncompiled(model: Decoder, config: TimeConfig) -> AbstractContextManager[Any]:
    """Inside, what is compiled runs as it was written: a cache that grows with each token would be
    compiled with each token."""
    if not is_compiled(model, config):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
