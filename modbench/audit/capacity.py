"""Probe 4: the training rule routes the nominal number of tokens, whatever the scores.

B sequences, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from modbench.audit.finding import Outcome, Subject, few, outer_routers, ragged, zero_routers
from modbench.errors import UserError, several
from modbench.ledger import Workload
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder
from modbench.routing.depth_router import DepthRouted, DepthRouter
from modbench.routing.expert_router import ExpertRouter, RoutedExperts
from modbench.routing.router import overrides

#: Factor between realised and nominal numbers from which a rule fails that no loss and no `update` can
#: move to the nominal one.
FAR = 1.1
#: The same for experts per token where a loss or an `update` can, and the number is not declared; and
#: without a scorer, since a hash of ids selects by chance another share of a small vocabulary.
FAR_BY_CHANCE = 1.5
#: Sequences and tokens of a text on which numbers are compared. If each token is selected by chance, an
#: eighth of them deviates by a factor of `FAR` in one text of 100, and in the same way in two by one in
#: 20,000.
TEXT = (8, 512)
#: Short lengths, at which rounding to whole tokens matters most; the audited length is added.
LENGTHS = (1, 2, 7)


@torch.no_grad()
def capacity(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 4: the routed counts equal `Layer.nominal_counts` for one sequence of several lengths, a
    batch and padding, and where all tokens or all scores are equal (ties go to the earlier token); at
    further shapes for a padded batch. A depth count is never 0 for a sequence with tokens.

    Of layers without nominal counts, whose router overrides `selected` or `assign`: the tokens that
    training selects in two texts, with the audited and with initial weights, are as many as nominal, up
    to `FAR`. If a loss or an `update` of the router learns their number, it is reported only.

    The share of tokens that the causal rule selects is reported at the first shape; it fails only if it
    is 0 or 1 whatever the weights."""
    first = subject.is_first(tokens_BT)
    tokens_BT = few(tokens_BT)
    sequence = tokens_BT.shape[1]
    numbers = _numbers(subject) if first else []
    if far := [number.figure for number in numbers if number.far]:
        return False, far[0]
    if not subject.model.nominal_counts(Workload.uniform(1, sequence)):
        if not numbers:
            return None, "no layer declares nominal counts"
        fixed = any(not number.learned for number in numbers)
        return (True if fixed else None), max(numbers, key=lambda n: n.learned).figure
    shares = _selected_by_the_causal_rule(subject, tokens_BT) if first else []
    model = subject.twin().train()
    tied = zero_routers(subject.twin().train())
    scores_ties = False
    with suppress(UserError):  # a scorer with weight normalisation has no scores for weights of 0
        tied(subject.tokens(1, 2), Context())
        scores_ties = True
    cases = list(_cases(tokens_BT, first=first))
    for name, of_BT, lengths in cases:
        wrong = _wrong(model, of_BT, lengths)
        if not wrong and scores_ties and name in ("padded", "all tokens equal"):
            wrong = _wrong(tied, of_BT, lengths, tied=True)
            name += ", all scores equal"
        if wrong:
            return False, f"{wrong}; {name}, lengths {_short(lengths)}"
    if len(shares) > 1 and (set(shares) in ({0.0}, {1.0})):
        return False, f"the causal rule selects {shares[0]:.0%} of the tokens, whatever the weights"
    causal = f", the causal rule selects {shares[0]:.1%}" if shares else ""
    return True, f"nominal counts hold in {several(len(cases), 'case')}{causal}"


@dataclass(frozen=True)
class _Number:
    """Number of tokens a layer selects, or experts it gives each token, in each text, and the nominal
    number. ``far``: too far from it in each text, in the same way. ``learned``: losses or `update` of
    the router can move it."""

    figure: str
    far: bool
    learned: bool


def _numbers(subject: Subject) -> list[_Number]:
    """The numbers of all layers whose router decides how many tokens it selects."""
    deciding = _deciding(subject.model)
    shares: dict[str, list[float]] = {name: [] for name in deciding}
    makers = (subject.twin, lambda: subject.fresh()[0]) if deciding else ()
    for draw, make in enumerate(makers):
        model = make()
        context = Context()
        text_BT = subject.tokens(*TEXT, draw=7 + draw)
        model.train().hidden(text_BT, context)
        for name, layer in _deciding(model).items():
            what = "experts" if isinstance(layer, RoutedExperts) else "depth"
            routed = sum(context.trace.counts.get((layer.layer, what), ()))
            selected_BT = context.trace.tensors.get((layer.layer, "selected"))
            reached = text_BT.numel()
            if what == "experts" and selected_BT is not None:  # inside a block that skips tokens
                reached = int(selected_BT.sum())
            shares[name].append(routed / max(reached, 1))
    return [_number(layer, shares[name]) for name, layer in deciding.items()]


def _deciding(model: RoutedDecoder) -> dict[str, RoutedExperts | DepthRouted]:
    """The layers of ``model`` whose router decides how many tokens it selects, by name."""
    deciding: dict[str, RoutedExperts | DepthRouted] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, RoutedExperts):
            if layer.options.assigns and layer.options.exact_load((1,), (0,)) is None:
                deciding[name] = layer
        elif isinstance(layer, DepthRouted) and layer.decides:
            deciding[name] = layer
    return deciding


def _number(layer: RoutedExperts | DepthRouted, realised: Sequence[float]) -> _Number:
    if isinstance(layer, RoutedExperts):
        experts, what = layer.options, "experts per token"
        nominal = experts.nominal_experts_per_token()
        declared = overrides(experts, "nominal_experts_per_token", ExpertRouter)
        hooks = ("losses", "auxiliary_losses", "update")
        learned = any(overrides(experts, hook, ExpertRouter) for hook in hooks)
    else:
        nominal, what, declared = layer.options.capacity, "of the tokens", True
        learned = any(overrides(layer.options, hook, DepthRouter) for hook in ("losses", "update"))
    factors = [each / nominal for each in realised]
    numbers = " and ".join(f"{number:.3g}" for number in realised)
    figure = f"layer {layer.layer} selects {numbers} {what} in training"
    if learned and declared:
        return _Number(f"{figure}, which losses or update learn; nominal is {nominal:.3g}", False, True)
    limit = FAR_BY_CHANCE if learned or layer.router is None else FAR
    figure += f"; nominal is {nominal:.3g}" if declared else f", and nominal is top_k, {nominal:g}"
    figure += f" (limit: a factor of {limit:g} in both texts)"
    figure += "" if declared else "; define nominal_experts_per_token"
    return _Number(figure, min(factors) > limit or max(factors) < 1 / limit, learned)


def _selected_by_the_causal_rule(subject: Subject, tokens_BT: Tensor) -> list[float]:
    """Mean share of tokens selected under the causal rule in depth-routed layers: of the model, of a
    newly initialised one, and of one with added noise."""
    full = Workload.uniform(*tokens_BT.shape)
    nominal = subject.exact.nominal_counts(full)
    layers = [n for (n, what), k in nominal.items() if what == "depth" and sum(k) < full.tokens]
    if not layers or full.tokens == 1:
        return []
    means = []
    model = subject.exact
    for weights in ("audited", "initial", "noisy"):
        if weights == "initial":
            model, _ = subject.fresh()
        elif weights == "noisy":
            generator = torch.Generator().manual_seed(subject.seed)
            for parameter in model.layers.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise.to(parameter.device) * parameter.std(correction=0))
        context = Context(selection="causal")
        model.hidden(tokens_BT, context)
        shown = [context.trace.tensors.get((layer, "selected")) for layer in layers]
        shares = [shown_BT.double().mean().item() for shown_BT in shown if shown_BT is not None]
        if shares:
            means.append(sum(shares) / len(shares))
    return means


def _cases(tokens_BT: Tensor, *, first: bool) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Name, tokens and lengths of each batch; one padded batch beyond the first shape."""
    sequence = tokens_BT.shape[1]
    three_BT = tokens_BT[:3]
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
    model.hidden(tokens_BT, context)
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
