"""Probe 4: the training rule routes exactly the nominal counts, whatever the scores.

B sequences, T tokens.
"""

import copy
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor

from modbench.errors import UserError, several
from modbench.ledger import Workload
from modbench.measure.audit.finding import Outcome, Subject, few, outer_routers, ragged, zero_routers
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder
from modbench.routing.expert_router import ExpertRouter, RoutedExperts
from modbench.routing.router import overrides

#: Factor between the experts of a token and ``top_k`` from which the number must be declared.
FAR = 1.5
LENGTHS = (1, 2, 7)


@torch.no_grad()
def capacity(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 4: the routed counts equal `Layer.nominal_counts` for one sequence of several lengths, a
    batch and padding, and where all tokens or all scores are equal (ties go to the earlier token); at
    further shapes for a padded batch. A depth count is never 0 for a sequence with tokens.

    The share of tokens that the causal rule selects is reported at the first shape; it fails only if it
    is 0 or 1 whatever the weights."""
    first, tokens_BT = subject.is_first(tokens_BT), few(tokens_BT)
    sequence = tokens_BT.shape[1]
    model = subject.twin().train()
    if first and (undeclared := _undeclared(model, tokens_BT)):
        return False, undeclared
    if not model.nominal_counts(Workload.uniform(1, sequence)):
        return None, "no layer declares nominal counts"
    tied = zero_routers(subject.twin().train())
    scores_ties = False
    with suppress(UserError):  # a scorer with weight normalisation has no scores for weights of 0
        tied(subject.tokens(1, 2), Context())
        scores_ties = True
    counted = 0
    for name, of_BT, lengths in _cases(tokens_BT, first=first):
        counted += 1
        wrong = _wrong(model, of_BT, lengths)
        if not wrong and scores_ties and name in ("padded", "all tokens equal"):
            wrong = _wrong(tied, of_BT, lengths, tied=True)
            name += ", all scores equal"
        if wrong:
            return False, f"{wrong}; {name}, lengths {_short(lengths)}"
    shares = _selected_by_the_causal_rule(subject, tokens_BT) if first else []
    if len(shares) > 1 and (set(shares) in ({0.0}, {1.0})):
        return False, f"the causal rule selects {shares[0]:.0%} of the tokens, whatever the weights"
    causal = f", the causal rule selects {shares[0]:.1%}" if shares else ""
    return True, f"nominal counts hold in {several(counted, 'case')}{causal}"


def _undeclared(model: RoutedDecoder, tokens_BT: Tensor) -> str:
    """Describe a layer that assigns tokens to another number of experts than ``top_k``, while the
    router does not define `nominal_experts_per_token`; empty if there is none."""
    layers = [layer for layer in model.modules() if isinstance(layer, RoutedExperts)]
    context = Context()
    if any(layer.options.assigns for layer in layers):
        model(tokens_BT, context)
    for layer in layers:
        top_k, counts = layer.options.top_k, context.trace.counts
        each = sum(counts.get((layer.layer, "experts"), ())) / tokens_BT.numel()
        declared = overrides(layer.options, "nominal_experts_per_token", ExpertRouter)
        if layer.options.assigns and not declared and each and not 1 / FAR < each / top_k < FAR:
            return (
                f"layer {layer.layer} assigns a token to {each:.3g} experts on average, and nominal "
                f"is top_k, {top_k}; define nominal_experts_per_token"
            )
    return ""


def _selected_by_the_causal_rule(subject: Subject, tokens_BT: Tensor) -> list[float]:
    """Mean share of tokens selected under the causal rule in depth-routed layers: of the model, of a
    newly initialised one, and of one with added noise."""
    full = Workload.uniform(*tokens_BT.shape)
    nominal = subject.exact.nominal_counts(full)
    layers = [n for (n, what), k in nominal.items() if what == "depth" and sum(k) < full.tokens]
    if not layers or full.tokens == 1:
        return []
    noisy = copy.deepcopy(subject.initial)
    generator = torch.Generator().manual_seed(subject.seed)
    for parameter in noisy.layers.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.add_(noise.to(parameter.device) * parameter.std(correction=0))
    found = []
    for model in (subject.exact, subject.initial, noisy):
        context = Context(selection="causal")
        model(tokens_BT, context)
        shown = [context.trace.tensors.get((layer, "selected")) for layer in layers]
        shares = [shown_BT.double().mean().item() for shown_BT in shown if shown_BT is not None]
        if shares:
            found.append(sum(shares) / len(shares))
    return found


def _cases(tokens_BT: Tensor, *, first: bool) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Name, tokens and lengths of each batch; one padded batch beyond the first shape."""
    sequence, three_BT = tokens_BT.shape[1], tokens_BT[:3]
    if first:
        for length in (*(n for n in LENGTHS if n < sequence), sequence):
            yield "one sequence", tokens_BT[:1, :length], (length,)
        yield "a batch", tokens_BT, (sequence,) * len(tokens_BT)
        yield "all tokens equal", torch.zeros_like(three_BT), (sequence,) * len(three_BT)
        yield "padded", three_BT, tuple(min(n, sequence) for n in LENGTHS)[: len(three_BT)]
    rows = len(three_BT)
    yield "padded", three_BT, tuple(max(1, sequence * (n + 1) // rows) for n in range(rows))


def _wrong(model: RoutedDecoder, tokens_BT: Tensor, lengths: tuple[int, ...], tied: bool = False) -> str:
    """Describe the first count that differs from the nominal one; empty if there is none."""
    context = Context(lengths_B=ragged(lengths, tokens_BT))
    model(tokens_BT, context)
    trace = context.trace
    for (layer, what), nominal in model.nominal_counts(Workload(lengths=lengths)).items():
        declared = f"layer {layer} declares {what} {_short(nominal)}"
        counts = trace.counts.get((layer, what))
        if counts is None and (layer, what) in trace.tensors:
            counts = tuple(int(value) for value in trace.tensors[layer, what].flatten())
        if counts is None:
            return f"{declared}, and the trace has no such count"
        if counts != nominal:
            return f"{declared} and counts {_short(counts)}"
        if what == "depth" and 0 in nominal:
            return f"{declared}: 0 where there are tokens"
        shown_BT = trace.tensors.get((layer, "selected"))
        if what == "depth" and shown_BT is not None:
            rows = [row[:length] for row, length in zip(shown_BT, lengths, strict=True)]
            shown = tuple(int(row.sum()) for row in rows)
            if shown != nominal:
                return f"{declared} and selects {_short(shown)}"
            late = all(bool(row[len(row) - k :].all()) for row, k in zip(rows, shown, strict=True))
            if tied and late and nominal != lengths and outer_routers(model.layers[layer]):
                return f"layer {layer} selects the last of tokens with equal scores, not the first"
    return ""


def _short(counts: tuple[int, ...]) -> str:
    """``counts`` as text, equal ones once: ``3 x 16``."""
    if len(set(counts)) == 1 and len(counts) > 1:
        return f"{len(counts)} x {counts[0]}"
    return ", ".join(map(str, counts[:8])) + (", ..." if len(counts) > 8 else "")
