"""Probe 4: the training rule routes as many as it promises, whatever the scores.

B sequences, T tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from modbench.ledger import Workload
from modbench.measure.audit.finding import (
    Outcome,
    Subject,
    plain_block,
    routers,
    zero_routers,
)
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder

LENGTHS = (1, 2, 7)


@torch.no_grad()
def capacity(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 4: what `Layer.nominal_counts` says is what is routed, at every length, alone, in a batch
    and padded, where all tokens and all scores are equal, too, ties going to the earlier token; and is
    never 0 where there is a token. How many the causal rule lets in is told; nobody or everybody,
    whatever the weights, is no rule."""
    sequence = tokens_BT.shape[1]
    model = subject.twin().train()
    if not model.nominal_counts(Workload.uniform(1, sequence)):
        return None, "no layer promises a count"
    even = zero_routers(subject.twin().train())
    counted = 0
    for length in (*(n for n in LENGTHS if n < sequence), sequence):
        for name, of_BT, lengths in _cases(tokens_BT, length):
            counted += 1
            for scores, which in (("", model), (", all scores equal", even)):
                if scores and "equal" not in name and "padded" not in name:
                    continue
                wrong = _wrong(which, of_BT, lengths, tied=bool(scores))
                if wrong:
                    return False, f"{wrong}; {name}{scores}, lengths {_short(lengths)}"
    share = _let_in(subject, tokens_BT)
    if len(share) > 1 and (set(share) in ({0.0}, {1.0})):
        return False, f"the causal rule lets in {share[0]:.0%}, whatever the weights and the text"
    told = f", the causal rule lets in {share[0]:.1%}" if share else ""
    return True, f"as promised in {counted} cases{told}"


def _let_in(subject: Subject, tokens_BT: Tensor) -> list[float]:
    """The share of tokens that the causal rule lets into the layers that promise to leave some out: of
    the model, of first weights, and of others."""
    full = Workload.uniform(*tokens_BT.shape)
    promised = subject.exact.nominal_counts(full)
    layers = [n for (n, what), k in promised.items() if what == "depth" and sum(k) < full.tokens]
    found = []
    for number in range(3):
        model = subject.exact if number == 0 else subject.fresh()[0].double().eval()
        if number == 2:
            generator = torch.Generator().manual_seed(subject.seed)
            for parameter in model.layers.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise.to(parameter.device) * parameter.std(correction=0))
        context = Context(selection="causal")
        model(tokens_BT, context)
        shown = [context.trace.tensors.get((layer, "selected")) for layer in layers]
        shares = [shown_BT.double().mean().item() for shown_BT in shown if shown_BT is not None]
        if shares and tokens_BT.numel() > 1:
            found.append(sum(shares) / len(shares))
    return found


def _cases(tokens_BT: Tensor, length: int) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Name, tokens and lengths of each batch."""
    three_BT = tokens_BT[:3, :length]
    padded = tuple(max(1, length * (n + 1) // len(three_BT)) for n in range(len(three_BT)))
    yield "one sequence", tokens_BT[:1, :length], (length,)
    yield "a batch", tokens_BT[:, :length], (length,) * len(tokens_BT)
    yield "padded", three_BT, padded
    yield "all tokens equal", torch.zeros_like(three_BT), (length,) * len(three_BT)


def _wrong(model: RoutedDecoder, tokens_BT: Tensor, lengths: tuple[int, ...], tied: bool = False) -> str:
    """What isn't as promised; empty if all is."""
    ragged = min(lengths) < tokens_BT.shape[1]
    context = Context(lengths_B=torch.tensor(lengths, device=tokens_BT.device) if ragged else None)
    model(tokens_BT, context)
    trace = context.trace
    for (layer, what), promised in model.nominal_counts(Workload(lengths=lengths)).items():
        told = trace.counts.get((layer, what))
        if told is None and (layer, what) in trace.tensors:
            told = tuple(int(value) for value in trace.tensors[layer, what].flatten())
        if told is None:
            return f"layer {layer} promises {what} {_short(promised)} and tells of none"
        if told != promised:
            return f"layer {layer} promises {what} {_short(promised)}, and it is {_short(told)}"
        if what == "depth" and 0 in promised:
            return f"layer {layer} promises {what} {_short(promised)}: 0 where there are tokens"
        shown_BT = trace.tensors.get((layer, "selected"))
        if what == "depth" and shown_BT is not None:
            shown = tuple(int(row[:n].sum()) for row, n in zip(shown_BT, lengths, strict=True))
            last = [row[:n].flip(0) for row, n in zip(shown_BT, lengths, strict=True)]
            late = all(bool(row[:k].all()) for row, k in zip(last, shown, strict=True))
            own = _own_router(model.layers[layer])
            if tied and own and late and shown == promised != lengths:
                return f"of equal scores layer {layer} lets in the latest, and not the earliest"
            if shown != promised:
                return f"layer {layer} promises {what} {_short(promised)} and selects {_short(shown)}"
    return ""


def _own_router(layer: nn.Module) -> bool:
    """Whether it has a router beside those of the block that it holds."""
    block = plain_block(layer)
    inside = {id(parameter) for parameter in block.parameters()} if block is not None else set()
    return any(id(parameter) not in inside for parameter in routers(layer).values())


def _short(counts: tuple[int, ...]) -> str:
    """``counts``, said once where all are equal."""
    if len(set(counts)) == 1 and len(counts) > 1:
        return f"{len(counts)} x {counts[0]}"
    return ", ".join(map(str, counts[:8])) + (", ..." if len(counts) > 8 else "")
