"""Decoding by graphs against decoding as it is written. A CPU has no CUDA graphs: what would be recorded
is traced here into a program of PyTorch's own ops, which is run in its place, so that nothing of the
host's that changes from token to token can be part of it.

B sequences, T tokens.
"""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from modbench.errors import UserError
from modbench.model import decode_graphs
from modbench.model.config import ModelConfig
from modbench.model.context import Context, Trace
from modbench.model.decode_graphs import (
    DecodeGraphs,
    Function,
    Outputs,
    cuda_graphs,
    without_determinism,
)
from modbench.model.decoder import Decoder
from modbench.model.generate import decode, generate, prefill
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, router_names

SHAPE = ModelConfig(vocabulary=61, width=32, layers=4, heads=4, kv_heads=2)
#: Few enough that pasts grow out of it.
SPAN = 8
PROMPTS, NEW = [[5, 4, 3, 9, 9], [7], [1, 2, 3, 4, 5, 6, 7], [8, 8, 8]], 14


class Traced:
    """Makes programs, and counts them and their runs."""

    def __init__(self) -> None:
        self.programs = self.runs = 0

    def __call__(self, function: Function, inputs: Outputs) -> Function:
        self.programs += 1
        own = tuple(given.clone() for given in inputs)
        with torch.no_grad():
            program = make_fx(function)(*own)

        def replay(*inputs: Tensor) -> Outputs:
            self.runs += 1
            for mine, given in zip(own, inputs, strict=True):
                assert (mine.shape, mine.dtype) == (given.shape, given.dtype)
                mine.copy_(given)
            return tuple(program(*own))

        return replay


@pytest.fixture(autouse=True)
def _short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_graphs, "SPAN", SPAN)


def trained(name: str, config: ModelConfig = SHAPE, **options: Any) -> Decoder:
    """A model whose causal rules let some tokens in and others not."""
    model = build_model(config, build_router(name, options)).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for _ in range(3):
            model(torch.randint(config.vocabulary, (4, 24), generator=generator), Context())
    return model.eval()


def read(model: Decoder, graphs: DecodeGraphs | None) -> tuple[list[Tensor], list[Trace], Cache]:
    """Logits of ragged prompts and of new tokens after them, what was traced of these, and the cache."""
    longest = max(map(len, PROMPTS))
    tokens_BT = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in PROMPTS])
    logits_BV, cache = prefill(model, tokens_BT, [len(prompt) for prompt in PROMPTS], graphs=graphs)
    logits, traces = [logits_BV], []
    generator = torch.Generator().manual_seed(1)
    for _ in range(NEW):
        context = Context(selection="causal", cache=cache)
        tokens_B1 = torch.randint(model.config.vocabulary, (len(PROMPTS), 1), generator=generator)
        with torch.no_grad():
            logits.append(model(tokens_B1, context)[:, 0])
        traces.append(context.trace)
    return logits, traces, cache


def compare(model: Decoder) -> Traced:
    """That ``model`` decodes by graphs as it does without."""
    record = Traced()
    logits, traces, cache = read(model, DecodeGraphs(record))
    plain, plain_traces, plain_cache = read(model, None)
    for one, other in zip(logits, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert [trace.counts for trace in traces] == [trace.counts for trace in plain_traces]
    layers = range(2 * model.config.layers)
    assert [cache.lengths(n) for n in layers] == [plain_cache.lengths(n) for n in layers]
    assert cache.read == plain_cache.read
    return record


@pytest.mark.parametrize("name", router_names())
def test_every_scheme_decodes_as_it_is_written(name: str) -> None:
    record = compare(trained(name))
    assert record.runs > NEW
    assert record.programs < record.runs


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(vocabulary=61, width=32, layers=4, heads=4, mlp="gelu"),
        ModelConfig(vocabulary=61, width=32, layers=2, heads=1, tied_head=False),
    ],
    ids=["gelu", "one head"],
)
@pytest.mark.parametrize("name", ["vanilla", "mod"])
def test_every_shape_does(name: str, config: ModelConfig) -> None:
    compare(trained(name, config))


def test_some_sequences_of_a_routed_block_alone() -> None:
    """The test of all schemes has met blocks with some of the sequences, and with none."""
    _, traces, _ = read(trained("mod"), None)
    entered = {sum(trace.counts[1, "depth"]) for trace in traces}
    assert entered & {1, 2, 3}


def test_a_graph_is_replayed_while_its_span_lasts() -> None:
    """Of each layer one to a span and to the cache's memory, not one to each token."""
    model, record = trained("vanilla"), Traced()
    read(model, DecodeGraphs(record))
    longest = max(map(len, PROMPTS))
    spans = len({-(-(past + 1) // SPAN) for past in range(longest, longest + NEW)})
    grown = 2  # from 7 tokens to 14 and to 28
    assert record.runs == NEW * SHAPE.layers
    assert SHAPE.layers * spans <= record.programs <= SHAPE.layers * (spans + grown)


def test_what_is_read_again_is_written_over() -> None:
    model = trained("mod")
    tokens_BT = torch.arange(12).view(2, 6)
    _, cache = prefill(model, tokens_BT, graphs=DecodeGraphs(Traced()))
    mark, next_B = cache.mark(), torch.tensor([3, 4])
    first = [decode(model, next_B + n, cache) for n in range(4)]
    cache.rewind(mark)
    for other in range(4):
        decode(model, next_B + 20 + other, cache)
    cache.rewind(mark)
    again = [decode(model, next_B + n, cache) for n in range(4)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_two_caches_and_a_copy_keep_apart() -> None:
    model = trained("vanilla")
    caches, truth = [], []
    for first in (0, 20):
        tokens_BT = torch.arange(first, first + 6)[None]
        caches.append(prefill(model, tokens_BT, graphs=DecodeGraphs(Traced()))[1])
        truth.append(prefill(model, tokens_BT)[1])
    next_B = torch.tensor([9])
    for _ in range(3):
        for one, other in zip(caches, truth, strict=True):
            torch.testing.assert_close(decode(model, next_B, one), decode(model, next_B, other))
    copied = copy.deepcopy(caches[0])
    expected = decode(model, next_B, caches[0])
    decode(model, torch.tensor([1]), caches[0])
    assert torch.equal(decode(model, next_B, copied), expected)


def test_graphs_that_a_second_cache_is_given_are_made_anew() -> None:
    """Whatever lies where the first one's keys lay."""
    model, record = trained("vanilla"), Traced()
    graphs, next_B = DecodeGraphs(record), torch.tensor([9])
    for tokens in (6, 7):
        tokens_BT = torch.arange(tokens)[None]
        one, other = prefill(model, tokens_BT, graphs=graphs)[1], prefill(model, tokens_BT)[1]
        for _ in range(2):
            torch.testing.assert_close(decode(model, next_B, one), decode(model, next_B, other))
    assert record.programs >= 2 * SHAPE.layers


def test_other_weights_are_recorded_again() -> None:
    """A graph goes by where they are."""
    model, record = trained("vanilla"), Traced()
    _, cache = prefill(model, torch.arange(6)[None], graphs=DecodeGraphs(record))
    _, plain = prefill(model, torch.arange(6)[None])
    next_B = torch.tensor([9])
    for _ in range(2):
        torch.testing.assert_close(decode(model, next_B, cache), decode(model, next_B, plain))
        recorded = record.programs
        for parameter in model.parameters():
            parameter.data = 1.5 * parameter.data
    assert recorded == 2 * SHAPE.layers


def test_text_is_the_same() -> None:
    model = trained("mod")
    plain = generate(model, PROMPTS, new=10)
    assert generate(model, PROMPTS, new=10, graphs=DecodeGraphs(Traced())) == plain


@pytest.mark.parametrize("kind", ["gradient", "autocast"])
def test_what_graphs_do_not_know_runs_as_it_is_written(kind: str) -> None:
    model, record = trained("vanilla"), Traced()
    _, cache = prefill(model, torch.arange(6)[None], graphs=DecodeGraphs(record))
    context = Context(selection="causal", cache=cache)
    with (
        torch.set_grad_enabled(kind == "gradient"),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
    ):
        model(torch.tensor([[3]]), context)
    assert record.programs == 0


def test_where_there_is_no_gpu_it_says_so() -> None:
    with pytest.raises(
        UserError, match="CUDA graphs need a GPU and the model is on 'cpu'; decode without"
    ):
        cuda_graphs(torch.device("cpu"))
    with pytest.raises(UserError, match="graphs need a cache; leave cached true"):
        generate(trained("vanilla"), PROMPTS, new=2, cached=False, graphs=DecodeGraphs(Traced()))


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_determinism_comes_back(mode: int) -> None:
    before = torch.get_deterministic_debug_mode()
    try:
        torch.set_deterministic_debug_mode(mode)
        with without_determinism():
            assert torch.get_deterministic_debug_mode() == 0
        assert torch.get_deterministic_debug_mode() == mode
    finally:
        torch.set_deterministic_debug_mode(before)


def test_what_a_replay_gave_is_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real recorder, with a stand-in for CUDA whose graph runs again what it saw last."""
    out_N, seen = torch.zeros(3), []

    def function(x_N: Tensor) -> Outputs:
        seen.append(x_N)
        return (torch.mul(x_N, 2, out=out_N),)

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            pass

    class Graph:
        def replay(self) -> None:
            function(seen[-1])

    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *given, **named: nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    replay = decode_graphs._CudaGraphs().record(function, (torch.zeros(3),))
    assert len(seen) == decode_graphs.WARM_UP + 1
    given = [torch.arange(3.0), torch.arange(3.0) + 7]
    found = [replay(x_N)[0] for x_N in given]
    assert all(torch.equal(one, 2 * x_N) for one, x_N in zip(found, given, strict=True))
