"""What a router must show before it is ranked: probes on a model of that router, in float64 so that a
difference is a leak and not rounding.

Numbered as the design numbers them; here are 1 causal, 2 batch-invariant, 5 bypass and 9 count. A router
that fails 1, 2 or 9 is not ranked.

B sequences, T tokens, V vocabulary.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.flops.counter import FlopCounter
from modbench.flops.ledger import CONVENTIONS, Load, Phase
from modbench.model.context import Context, Selection
from modbench.model.decoder import Decoder

#: Largest difference of two float64 logits that is still rounding.
ROUNDING = 1e-8


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


def audit(model: Decoder, *, sequence: int = 63, seed: int = 0) -> list[Finding]:
    """Run the probes on ``model`` with random tokens, at an odd length and batch sizes above 1. The
    model itself is not changed."""
    on = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(model.config.vocabulary, (3, sequence), generator=generator).to(on)
    exact = copy.deepcopy(model).double().eval()
    return [
        causal(exact, tokens_BT, generator),
        batch_invariant(exact, tokens_BT),
        bypass(exact, tokens_BT),
        count(model, tokens_BT),
    ]


@torch.no_grad()
def causal(model: Decoder, tokens_BT: Tensor, generator: torch.Generator) -> Finding:
    """Probe 1: tokens after t change, logits up to t do not, under the causal rule."""
    sequence = tokens_BT.shape[1]
    before_BTV = model(tokens_BT, Context(selection="causal"))
    largest, moved = 0.0, 0
    places = sorted({0, 1, sequence // 4, sequence // 2, sequence - 8, sequence - 2})
    for place in [p for p in places if 0 <= p < sequence - 1]:
        shape = (tokens_BT.shape[0], sequence - place - 1)
        other_BT = torch.randint(model.config.vocabulary, shape, generator=generator)
        changed_BT = torch.cat((tokens_BT[:, : place + 1], other_BT.to(tokens_BT.device)), dim=1)
        after_BTV = model(changed_BT, Context(selection="causal"))
        difference_BT = (after_BTV - before_BTV)[:, : place + 1].abs().amax(-1)
        difference_BT = difference_BT.nan_to_num(nan=torch.inf)
        largest = max(largest, difference_BT.max().item())
        moved += int((difference_BT > ROUNDING).sum())
    return Finding(
        probe=1,
        name="causal",
        passed=largest <= ROUNDING,
        figure=f"{moved} earlier positions moved, by {largest:.1e} at most",
        ranks=True,
    )


@torch.no_grad()
def batch_invariant(model: Decoder, tokens_BT: Tensor) -> Finding:
    """Probe 2: a sequence alone scores as it does in a padded batch of strangers."""
    sequences, sequence = tokens_BT.shape
    lengths = [max(1, sequence * (n + 1) // sequences) for n in range(sequences)]
    lengths_B = torch.tensor(lengths, device=tokens_BT.device)
    together_BTV = model(tokens_BT, Context(selection="causal", lengths_B=lengths_B))
    largest = 0.0
    for row, length in enumerate(lengths):
        alone_TV = model(tokens_BT[row : row + 1, :length], Context(selection="causal"))[0]
        difference = (together_BTV[row, :length] - alone_TV).abs().nan_to_num(nan=torch.inf)
        largest = max(largest, difference.max().item())
    return Finding(
        probe=2,
        name="batch-invariant",
        passed=largest <= ROUNDING,
        figure=f"alone and among strangers differ by {largest:.1e} at most",
        ranks=True,
    )


@torch.no_grad()
def bypass(model: Decoder, tokens_BT: Tensor) -> Finding:
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
    return Finding(probe=5, name="bypass", passed=altered == 0, figure=figure, ranks=False)


def count(model: Decoder, tokens_BT: Tensor) -> Finding:
    """Probe 9: the closed form equals what the counter sees, forward under both rules, with and without
    padding, and training, in both conventions."""
    differences = {}
    sequences, sequence = tokens_BT.shape
    padded = tuple(max(1, sequence - 7 * n) for n in range(sequences))
    cases: tuple[tuple[str, Selection, Phase, bool], ...] = (
        ("topk forward", "topk", "forward", False),
        ("causal forward", "causal", "forward", False),
        ("padded causal forward", "causal", "forward", True),
        ("training step", "topk", "train", False),
    )
    for name, rule, phase, ragged in cases:
        twin = copy.deepcopy(model).train(phase == "train")
        lengths = padded if ragged else (sequence,) * sequences
        lengths_B = torch.tensor(lengths, device=tokens_BT.device) if ragged else None
        context = Context(selection=rule, lengths_B=lengths_B)
        with FlopCounter() as counter, torch.set_grad_enabled(phase == "train"):
            logits_BTV = twin(tokens_BT, context)
            if phase == "train":
                loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
                (loss + context.trace.auxiliary_loss()).backward()
        load = Load(lengths=lengths, phase=phase, padding=True, counts=context.trace.counts)
        ledger = twin.ledger(load)
        differences[name] = max(
            (ledger.total(convention) - counter.under(convention) for convention in CONVENTIONS),
            key=abs,
        )
    wrong = {name: difference for name, difference in differences.items() if difference}
    figure = (
        "ledger minus counter: "
        + ", ".join(f"{difference:+d} FLOPs in {name}" for name, difference in wrong.items())
        if wrong
        else f"ledger equals counter in {len(differences)} cases"
    )
    return Finding(probe=9, name="count", passed=not wrong, figure=figure, ranks=True)
