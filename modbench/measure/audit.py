"""What a router must show before it is ranked: probes on a model of that router, in float64 so that a
difference is a leak and not rounding.

Numbered as the design numbers them; here are 1 causal, 2 batch-invariant, 5 bypass and 9 count. A router
that fails 1, 2 or 9 is not ranked.

B sequences, T tokens, V vocabulary.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.flops.counter import FlopCounter
from modbench.flops.ledger import CONVENTIONS, Load, Phase
from modbench.model.context import Context, Selection
from modbench.model.decoder import Decoder

#: Largest difference of two float64 logits, relative to the largest logit, that is still rounding: room
#: for a router that computes its scores in float32.
ROUNDING = 1e-5
#: The same for float32, where a changed batch may also tip a token across a threshold by chance: so
#: much, in so many of the earlier positions.
ROUNDING_32, SHARE_32 = 1e-3, 0.02


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One probe's outcome. ``ranks``: whether a failure keeps the router out of the ranking."""

    probe: int
    name: str
    passed: bool
    figure: str
    ranks: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit(
    model: Decoder, *, shapes: Sequence[tuple[int, int]] = ((3, 63),), seed: int = 0
) -> list[Finding]:
    """Run the probes on ``model`` with random tokens, for each of ``shapes`` (sequences, tokens): an odd
    length, and whatever length and batch it is trained and scored at. A probe passes if it does at all
    of them; one that raises has failed. The model itself is not changed."""
    exact = copy.deepcopy(model).double().eval()
    probes = (
        (1, "causal", True, lambda tokens_BT: causal(exact, model, tokens_BT, seed)),
        (2, "batch-invariant", True, lambda tokens_BT: batch_invariant(exact, tokens_BT)),
        (5, "bypass", False, lambda tokens_BT: bypass(exact, tokens_BT)),
        (9, "count", True, lambda tokens_BT: count(model, tokens_BT)),
    )
    generator = torch.Generator().manual_seed(seed)
    on = next(model.parameters()).device
    texts = [torch.randint(model.config.vocabulary, shape, generator=generator) for shape in shapes]
    findings = []
    for number, name, ranks, probe in probes:
        for tokens_BT in texts:
            passed, figure = _outcome(probe, tokens_BT.to(on))
            if not passed:
                figure += f" (at {tokens_BT.shape[0]} x {tokens_BT.shape[1]} tokens)"
                break
        findings.append(Finding(probe=number, name=name, passed=passed, figure=figure, ranks=ranks))
    return findings


def _outcome(probe: Callable[[Tensor], tuple[bool, str]], tokens_BT: Tensor) -> tuple[bool, str]:
    try:
        return probe(tokens_BT)
    except Exception as error:  # a router's own code runs here: whatever it raises is its finding
        return False, f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"


@torch.no_grad()
def causal(exact: Decoder, model: Decoder, tokens_BT: Tensor, seed: int = 0) -> tuple[bool, str]:
    """Probe 1: tokens after t change, logits up to t do not, under the causal rule; in float64, and with
    a coarser measure in the model's own dtype."""
    tokens_BT = tokens_BT[:4]  # the length matters here; the batch is probe 2's
    largest, moved, _ = _moved(exact, tokens_BT, ROUNDING, seed)
    own = copy.deepcopy(model).eval()
    _, moved_32, looked_at = _moved(own, tokens_BT, ROUNDING_32, seed)
    if moved == 0 and moved_32 > SHARE_32 * looked_at:
        return False, f"{moved_32} earlier positions moved in {next(model.parameters()).dtype} only"
    return moved == 0, f"{moved} earlier positions moved, by {largest:.1e} at most"


def _moved(model: Decoder, tokens_BT: Tensor, rounding: float, seed: int) -> tuple[float, int, int]:
    """The largest move of an earlier position's logits, how many moved, and how many were looked at."""
    generator = torch.Generator().manual_seed(seed)
    sequence = tokens_BT.shape[1]
    before_BTV = model(tokens_BT, Context(selection="causal"))
    bound = rounding * max(1.0, before_BTV.abs().max().item())
    largest, moved, looked_at = 0.0, 0, 0
    places = {0, 1, sequence // 4, sequence // 2, sequence - 8, sequence - 2}
    for place in sorted(place for place in places if 0 <= place < sequence - 1):
        shape = (tokens_BT.shape[0], sequence - place - 1)
        other_BT = torch.randint(model.config.vocabulary, shape, generator=generator)
        changed_BT = torch.cat((tokens_BT[:, : place + 1], other_BT.to(tokens_BT.device)), dim=1)
        after_BTV = model(changed_BT, Context(selection="causal"))
        difference_BT = _largest(after_BTV[:, : place + 1], before_BTV[:, : place + 1])
        largest = max(largest, difference_BT.max().item())
        moved += int((difference_BT > bound).sum())
        looked_at += difference_BT.numel()
    return largest, moved, looked_at


def _largest(one_BTV: Tensor, other_BTV: Tensor) -> Tensor:
    """The largest difference of each position's logits; infinite where one is no number."""
    return (one_BTV - other_BTV).abs().amax(-1).nan_to_num(nan=torch.inf)


@torch.no_grad()
def batch_invariant(model: Decoder, tokens_BT: Tensor) -> tuple[bool, str]:
    """Probe 2: a sequence alone scores as it does in a batch of strangers, padded and not."""
    sequences, sequence = tokens_BT.shape
    padded = [max(1, sequence * (n + 1) // sequences) for n in range(sequences)]
    largest, bound = 0.0, ROUNDING
    for lengths in (padded, [sequence] * sequences):
        lengths_B = torch.tensor(lengths, device=tokens_BT.device) if lengths == padded else None
        together_BTV = model(tokens_BT, Context(selection="causal", lengths_B=lengths_B))
        for row, length in list(enumerate(lengths))[-6:]:
            alone_BTV = model(tokens_BT[row : row + 1, :length], Context(selection="causal"))
            bound = max(bound, ROUNDING * alone_BTV.abs().max().item())
            difference_BT = _largest(together_BTV[row : row + 1, :length], alone_BTV)
            largest = max(largest, difference_BT.max().item())
    return largest <= bound, f"alone and among strangers differ by {largest:.1e} at most"


@torch.no_grad()
def bypass(model: Decoder, tokens_BT: Tensor) -> tuple[bool, str]:
    """Probe 5: a token that a layer says it did not select leaves that layer bit for bit unchanged."""
    skipped, altered = 0, 0
    rules: tuple[Selection, ...] = ("topk", "causal")
    for rule in rules:
        context = Context(selection=rule)
        x_BTD = model.embedding(tokens_BT)
        for number, layer in enumerate(model.layers):
            before_BTD = x_BTD
            x_BTD = layer(before_BTD, context)
            selected_BT = context.trace.tensors.get((number, "selected"))
            if selected_BT is None:
                continue
            changed_BT = (x_BTD != before_BTD).any(-1)
            skipped += int((~selected_BT).sum())
            altered += int((changed_BT & ~selected_BT).sum())
    figure = f"{altered} of {skipped} skipped tokens changed" if skipped else "no token skips a layer"
    return altered == 0, figure


def count(model: Decoder, tokens_BT: Tensor) -> tuple[bool, str]:
    """Probe 9: the closed form equals what the counter sees, forward under both rules and training, with
    and without padding, in both conventions. Without padded slots it must come to the same under the
    training rule on full sequences, and to no more elsewhere: that form sets the budget and fills the
    table."""
    sequences, sequence = tokens_BT.shape
    full = (sequence,) * sequences
    padded = tuple(max(1, sequence - 7 * n) for n in range(sequences))
    wrong: dict[str, str] = {}
    cases = 0
    passes: tuple[tuple[Selection, Phase], ...] = (
        ("topk", "forward"),
        ("topk", "train"),
        ("causal", "forward"),  # nothing trains under the causal rule
    )
    for lengths, (rule, phase) in itertools.product((full, padded), passes):
        cases += 1
        context, counter = _spend(model, tokens_BT, lengths, rule, phase)
        counts = context.trace.counts
        load = Load(lengths=lengths, phase=phase, counts=counts)
        for convention in CONVENTIONS:
            seen = counter.under(convention)
            dispatched = model.ledger(replace(load, padding=True)).total(convention)
            realised = model.ledger(load).total(convention)
            exact = rule == "topk" and lengths == full
            name = f"{'padded ' if lengths == padded else ''}{rule} {phase}"
            if dispatched != seen:
                wrong[name] = f"{dispatched - seen:+d} in {name}"
            elif realised > seen or (exact and realised != seen):
                wrong[name] = f"{realised - seen:+d} in {name} without padding"
    if wrong:
        return False, f"ledger minus counter, FLOPs: {', '.join(wrong.values())}"
    return True, f"ledger equals counter in {cases} cases"


def _spend(
    model: Decoder, tokens_BT: Tensor, lengths: tuple[int, ...], rule: Selection, phase: Phase
) -> tuple[Context, FlopCounter]:
    twin = copy.deepcopy(model).train(phase == "train")
    ragged = len(set(lengths)) > 1
    lengths_B = torch.tensor(lengths, device=tokens_BT.device) if ragged else None
    context = Context(selection=rule, lengths_B=lengths_B)
    with FlopCounter() as counter, torch.set_grad_enabled(phase == "train"):
        logits_BTV = twin(tokens_BT, context)
        if phase == "train":
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
            (loss + context.trace.auxiliary_loss()).backward()
    return context, counter
