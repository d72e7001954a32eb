"""Decoding on a GPU without a launch of each kernel: what a block does with one token of some sequences
is recorded once as a CUDA graph, and replayed.

Between blocks the host decides as ever, such as which sequences enter a depth-routed block: a graph is
of one block, of so many sequences, and of keys and values up to so many tokens. In it are attention and
a dense MLP; experts and routers run as they are written. Recorded is `Recordable.one_token`, of tensors
alone. The plain twin of all this is the block as it is written.

B sequences, R of them with one token each, C tokens that a graph looks at.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.model.kv_cache import Kept

if TYPE_CHECKING:
    from modbench.model.context import Context

#: A graph looks at a multiple of so many tokens: a longer past needs another graph.
SPAN = 256
#: Runs before a graph is recorded, in which libraries set up what they need.
WARM_UP = 3

Outputs = tuple[Tensor, ...]
#: Of tensors that stay on the device; ``inputs`` all have the shapes that they had when it was recorded.
Function = Callable[..., Outputs]
#: Makes of a function, and inputs like those to come, what does the same faster.
Record = Callable[[Function, Outputs], Function]


@dataclass(frozen=True)
class NewTokens:
    """One new token of each of R sequences. ``positions_R1``: theirs. ``places_2R``: which sequences
    these are, and how many tokens of each are kept already. ``k_BKCP``, ``v_BKCP``: the memory of all
    keys and values, into which the new ones go behind those. ``all_sequences``: R is B, in order."""

    positions_R1: Tensor
    places_2R: Tensor
    k_BKCP: Tensor
    v_BKCP: Tensor
    all_sequences: bool


class Recordable(Protocol):
    """A block whose work on one token of some sequences can be recorded."""

    def one_token(self, x_R1D: Tensor, new: NewTokens, *, adds: bool) -> Outputs:
        """What the block makes of them. ``adds``: as `modbench.model.block.Block`'s ``forward``, else as
        its ``delta``. No value may be brought to the host."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


class DecodeGraphs:
    """The graphs of one cache, which go by its memory and by the model's. ``record`` makes them; None:
    CUDA graphs, of which `cuda_graphs` says where there are any."""

    def __init__(self, record: Record | None = None) -> None:
        self._record = record if record is not None else _CudaGraphs().record
        self._recorded: dict[int, tuple[Kept, dict[tuple[Any, ...], Function]]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecodeGraphs":
        """Of a copied cache: none of those that write to this one's memory."""
        return DecodeGraphs(self._record)

    def run(
        self,
        block: Recordable,
        x_R1D: Tensor,
        context: "Context",
        kept: Kept,
        *,
        layer: int,
        adds: bool,
    ) -> Outputs:
        """What `Recordable.one_token` gives for the next token of each of the context's sequences, whose
        keys and values in ``layer`` are ``kept``, with room for it."""
        cache = context.cache
        assert cache is not None
        rows = range(cache.sequences) if context.rows is None else context.rows
        past = cache.lengths(layer, rows)
        all_sequences = len(rows) == cache.sequences
        span = min(kept.k_BKCP.shape[2], -(-(max(past) + 1) // SPAN) * SPAN)
        inputs = (x_R1D, context.positions(x_R1D), torch.tensor([list(rows), past]))
        graphs = self._of(layer, kept)
        weights = tuple(parameter.data_ptr() for parameter in block.parameters())
        key = (id(block), weights, x_R1D.shape, x_R1D.dtype, span, all_sequences, adds)
        if key not in graphs:

            def one_token(x_R1D: Tensor, positions_R1: Tensor, places_2R: Tensor) -> Outputs:
                seen = kept.k_BKCP[:, :, :span], kept.v_BKCP[:, :, :span]
                new = NewTokens(positions_R1, places_2R, *seen, all_sequences)
                return block.one_token(x_R1D, new, adds=adds)

            graphs[key] = self._record(one_token, tuple(t.to(x_R1D.device) for t in inputs))
        return graphs[key](*inputs)

    def _of(self, layer: int, kept: Kept) -> dict[tuple[Any, ...], Function]:
        """The layer's graphs, none where they wrote to memory that the cache has left since."""
        if layer not in self._recorded or self._recorded[layer][0] is not kept:
            # Held as long as its graphs are, so that nothing else comes to lie there.
            self._recorded[layer] = (kept, {})
        return self._recorded[layer][1]


class _CudaGraphs:
    """Records CUDA graphs that share memory: they are replayed one after another."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, function: Function, inputs: Outputs) -> Function:
        with torch.cuda.device(inputs[0].device):
            return self._record(function, inputs)

    def _record(self, function: Function, inputs: Outputs) -> Function:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        own = tuple(given.clone() for given in inputs)
        beside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with without_determinism():
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(WARM_UP):
                    function(*own)
            torch.cuda.current_stream().wait_stream(beside)
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = function(*own)

        def replay(*inputs: Tensor) -> Outputs:
            for mine, given in zip(own, inputs, strict=True):
                mine.copy_(given, non_blocking=True)
            with torch.cuda.device(own[0].device):
                graph.replay()
            # The next replay writes over them, and a layer may be met twice in a pass.
            return tuple(output.clone() for output in outputs)

        return replay


@contextmanager
def without_determinism() -> Iterator[None]:
    """Inside, PyTorch may take any kernel. Its deterministic `index_put_` asks the device for the
    largest index, which can't be recorded; a block writes each key and value once, in any order."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def cuda_graphs(on: torch.device) -> DecodeGraphs:
    """The graphs of a new cache on the device ``on``.

    Raises:
        UserError: it is no GPU.
    """
    if on.type != "cuda":
        raise UserError(f"CUDA graphs need a GPU and the model is on '{on.type}'; decode without them")
    return DecodeGraphs()
