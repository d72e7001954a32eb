"""The timed cases of a model (forward pass, training step, prefill, decode) and their FLOPs;
their target, a scheme at one size or only the machine.

B sequences, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modbench.hf.config import stretched
from modbench.hf.models import model_of
from modbench.ledger import CONVENTIONS, Ledger, Phase, Workload
from modbench.model.context import Context, Logits
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.model.shape import TRANSFORMERS, HubConfig, Shape
from modbench.model.trace import Trace
from modbench.records.run import Timed
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.routing.router import Router
from modbench.timing.config import FORCED_BALANCE, STEPS_IN_A_ROW, TimeConfig
from modbench.timing.stopwatch import nothing
from modbench.train.compiled import compiled, eager
from modbench.train.config import TrainConfig
from modbench.train.numerics import autocast, device, precision
from modbench.train.optimizer import build_optimizer, optimizer_ledger
from modbench.train.step import training_step

#: Types of devices whose host launches work ahead, so that several runs in a row take less time than
#: as many single ones.
LAUNCHES_AHEAD = {"cuda"}


@dataclass(frozen=True, kw_only=True)
class BenchmarkTarget:
    """``router`` is None if only the machine is measured, or a model of transformers as it is."""

    config: Shape
    train: TrainConfig
    time: TimeConfig
    router: Router | None
    on: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, timed: Timed, time: TimeConfig) -> "BenchmarkTarget":
        """Build for this machine. Raises UserError: an unknown router, option or field, or a wrong
        value."""
        on = device()
        router = None
        if timed.router is not None and timed.router.name != TRANSFORMERS:
            router = build_router(timed.router.name, timed.router.options)
        return cls(
            config=timed.model,
            train=timed.train,
            time=time.resolved(timed.train.sequence),
            router=router,
            on=on,
            dtype=precision(timed.train.precision, on),
        )

    @property
    def warm_up(self) -> float:
        """Seconds of untimed runs before samples; a CPU's clock rises sooner than a GPU's."""
        return self.time.warm_up_seconds / (5 if self.on.type == "cpu" else 1)

    def build(self) -> LanguageModel:
        """Build the scheme's model with random weights."""
        if isinstance(self.config, HubConfig):
            return model_of(self._stretched(self.config), *self._stated).to(self.on)
        assert self.router is not None
        return build_model(self.config, self.router).to(self.on)

    @property
    def _stated(self) -> tuple[str, dict[str, Any]]:
        """Name and options of the router of a model of transformers."""
        return (TRANSFORMERS, {}) if self.router is None else (self.router.name, self.router.options())

    def _stretched(self, shape: HubConfig) -> HubConfig:
        """``shape`` with positions for all timed lengths: a learned position embedding has a row for
        each."""
        time = self.time
        return stretched(shape, max(*time.prefill, max(time.decode_past) + time.decode_tokens))


class Prepared(NamedTuple):
    """``run`` runs the case once and returns the traces of its forward passes; ``before`` is called
    before each run, untimed."""

    run: Callable[[], list[Trace]]
    before: Callable[[], object] = nothing


@dataclass(frozen=True, kw_only=True)
class BenchmarkCase:
    """A run processes ``tokens`` new tokens of each of ``sequences`` sequences, after ``past`` cached
    ones. ``in_a_row``: number of runs that are timed together, without a wait between them; 0: each is
    timed alone. ``prepare`` may change the model; if it runs out of memory, later cases can still be
    prepared. It returns None if the case does not apply to the model."""

    phase: Phase
    sequences: int
    tokens: int
    past: int = 0
    in_a_row: int = 0
    suffix: str = ""
    train: TrainConfig | None = None  #: of a training step: its settings
    prepare: Callable[[], Prepared | None]

    @property
    def name(self) -> str:
        batch = f" x {self.sequences}"
        if self.phase == "decode":
            return f"decode after {self.past}{batch}{self.suffix}"
        if self.phase == "prefill":
            return f"prefill {self.tokens}{batch}"
        return f"{self.phase} x {self.in_a_row}" if self.in_a_row else self.phase

    def flops(self, model: LanguageModel, traces: Sequence[Trace]) -> dict[str, dict[str, int]]:
        """FLOPs of a run under each convention: nominal, realised by ``traces``, and dispatched (with
        padded slots)."""
        train = self.train
        # A trace is of a micro-batch of a training step, or of a token of each sequence.
        rows = train.rows if train else self.sequences
        each = self.tokens if train else self.tokens // len(traces)
        again = train is not None and train.recompute
        update = optimizer_ledger(model, train) if train else Ledger()

        def ledger(past: int, tokens: int, **routed: Any) -> Ledger:
            load = Workload.uniform(rows, tokens, self.phase, past, checkpoint=again, **routed)
            return model.loss_ledger(load)

        def spent(padding: bool) -> Ledger:
            return Ledger.sum(
                ledger(self.past + number * each * (not train), each, counts=of.counts, padding=padding)
                for number, of in enumerate(traces)
            )

        ledgers = {
            "nominal": ledger(self.past, self.tokens) * (train.micro_batches if train else 1),
            "realised": spent(padding=False),
            "dispatched": spent(padding=True),
        }
        return {
            kind: {convention: (ledger + update).total(convention) for convention in CONVENTIONS}
            for kind, ledger in ledgers.items()
        }


def training_cases(model: LanguageModel, subject: BenchmarkTarget) -> list[BenchmarkCase]:
    """Forward pass and training step of one batch of random tokens under the training rule, as
    `modbench.train` runs them."""
    train, time = subject.train, subject.time

    def logits(tokens_BT: Tensor, context: Context) -> Tensor:
        return model(tokens_BT, context)  # type: ignore[no-any-return]

    passes = compiled(logits, model, time.compile)
    losses = compiled(eager(model), model, time.compile, recompute=train.recompute)

    def forward() -> Prepared:
        model.eval()
        tokens_BT, _ = random_batch(model, train)

        def run() -> list[Trace]:
            context = Context(selection="topk", forced_balance=FORCED_BALANCE)
            with torch.no_grad(), autocast(subject.dtype, subject.on):
                passes(tokens_BT, context)
            return [context.trace]

        return Prepared(run)

    def step() -> Prepared:
        optimizer = build_optimizer(model.train(), train)
        batch = random_batch(model, train)

        def run() -> list[Trace]:
            _, traces = training_step(
                model,
                optimizer,
                train,
                batch,
                subject.dtype,
                forced_balance=FORCED_BALANCE,
                losses=losses,
            )
            return traces

        return Prepared(run)

    case = partial(BenchmarkCase, sequences=train.batch, tokens=train.sequence)
    cases = [case(phase="forward", prepare=forward), case(phase="train", train=train, prepare=step)]
    if subject.on.type in LAUNCHES_AHEAD:
        cases.append(case(phase="train", train=train, in_a_row=STEPS_IN_A_ROW, prepare=step))
    return cases


def inference_cases(model: LanguageModel, subject: BenchmarkTarget) -> list[BenchmarkCase]:
    """Prefill and decode cases under the causal rule, eager, with weights in the subject's dtype; on a
    GPU, decoding also as a CUDA graph (`graphed`)."""
    time = subject.time
    ahead = subject.on.type in LAUNCHES_AHEAD

    def serve() -> None:
        model.zero_grad(set_to_none=True)
        model.eval().to(subject.dtype)

    def prefill(length: int) -> Prepared:
        serve()
        tokens_BT = random_tokens(model, time.prefill_batch, length)
        return Prepared(lambda: [read(model, tokens_BT, Cache(len(tokens_BT)), logits="last")])

    def decode(sequences: int, past: int, is_graph: bool) -> Prepared | None:
        serve()
        cache = Cache(sequences)
        tokens_BT = random_tokens(model, sequences, past + time.decode_tokens)
        read(model, tokens_BT[:, :past], cache, logits="last")
        filled = cache.mark()
        steps = [step_B1.contiguous() for step_B1 in tokens_BT[:, past:].split(1, dim=1)]
        prepared = Prepared(
            lambda: [read(model, step_B1, cache, logits="all") for step_B1 in steps],
            before=lambda: cache.rewind(filled),
        )
        return graphed(prepared) if is_graph else prepared

    prompts, tokens = time.prefill_batch, time.decode_tokens
    return [
        *(
            BenchmarkCase(
                phase="prefill", sequences=prompts, tokens=length, prepare=partial(prefill, length)
            )
            for length in time.prefill
        ),
        *(
            BenchmarkCase(
                phase="decode",
                sequences=sequences,
                tokens=tokens,
                past=past,
                suffix=", graph" if is_graph else "",
                prepare=partial(decode, sequences, past, is_graph),
            )
            for sequences in time.decode_batches
            for past in time.decode_past
            for is_graph in ([False, True] if ahead else [False])
        ),
    ]


def graphed(prepared: Prepared) -> Prepared | None:
    """``prepared`` as one CUDA graph, which a host launches at once; None if the host reads values, on
    which shapes may depend, or if a part cannot be captured."""
    prepared.before()
    prepared.run()  # the cache grows
    prepared.before()
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepared.run()
        prepared.before()
        torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            traces = prepared.run()
    except RuntimeError as error:
        print(f"no CUDA graph: {error}")
        torch.cuda.synchronize()  # raises if the error has ended the process's context
        return None
    finally:
        torch.cuda.set_sync_debug_mode("default")

    def run() -> list[Trace]:
        graph.replay()
        return traces

    return Prepared(run)


@torch.no_grad()
def read(model: LanguageModel, tokens_BT: Tensor, cache: Cache, *, logits: Logits) -> Trace:
    """Read tokens into ``cache`` under the causal rule."""
    context = Context(selection="causal", cache=cache, logits=logits, forced_balance=FORCED_BALANCE)
    model(tokens_BT, context)
    return context.trace


def random_tokens(model: LanguageModel, sequences: int, tokens: int) -> Tensor:
    """Random token ids (B, T), the same on each call."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(model.config.vocabulary, (sequences, tokens), generator=generator)
    return tokens_BT.to(next(model.parameters()).device)


def random_batch(model: LanguageModel, train: TrainConfig) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) of a training step."""
    window_BT = random_tokens(model, train.batch, train.sequence + 1)
    return window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()
