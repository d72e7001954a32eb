"""Probes 9 and 11: the count is what is executed, and what is skipped isn't.

B sequences, T tokens, V vocabulary.
"""

import itertools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.flops.counter import FlopCounter
from modbench.flops.ledger import CONVENTIONS, Ledger, Load, Phase
from modbench.measure.audit.finding import (
    NO_BLOCK,
    NOBODY_SKIPS,
    RULES,
    Outcome,
    Subject,
    plain_block,
    selected,
)
from modbench.model.context import Context, Selection
from modbench.model.decoder import Decoder

#: What every token may cost, and what does not grow by the token.
NOT_BY_TOKEN = ("router", "predictor", "attention.scores")
#: Tokens that are counted one by one.
LONE = 4


def count(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 9: the closed form equals what the counter sees, forward under both rules and training, with
    and without padding and of single tokens, in all conventions. Without padded slots it must come to
    the same under the training rule on full sequences, and to no more elsewhere: that form sets the
    budget and fills the table."""
    model = subject.model
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
    shapes = [("", tokens_BT, full), ("padded ", tokens_BT, padded)]
    # One token either enters a layer or doesn't: a layer that nobody enters spends less, and hands its
    # router no gradient.
    shapes += [("single-token ", token_BT, (1,)) for token_BT in subject.tokens(1, LONE).split(1, 1)]
    for (which, text_BT, lengths), (rule, phase) in itertools.product(shapes, passes):
        cases += 1
        context, counter = _spend(subject, text_BT, lengths, rule, phase)
        counts = context.trace.counts
        load = Load(lengths=lengths, phase=phase, counts=counts)
        for convention in CONVENTIONS:
            seen = counter.under(convention)
            dispatched = model.ledger(replace(load, padding=True)).total(convention)
            realised = model.ledger(load).total(convention)
            exact = rule == "topk" and lengths == full
            name = f"{which}{rule} {phase}"
            if dispatched != seen:
                wrong[name] = f"{dispatched - seen:+d} in {name}"
            elif realised > seen or (exact and realised != seen):
                wrong[name] = f"{realised - seen:+d} in {name} without padding"
    if wrong:
        return False, f"ledger minus counter, FLOPs: {', '.join(wrong.values())}"
    return True, f"ledger equals counter in {cases} cases"


def _spend(
    subject: Subject, tokens_BT: Tensor, lengths: tuple[int, ...], rule: Selection, phase: Phase
) -> tuple[Context, FlopCounter]:
    twin: Decoder = subject.twin().train(phase == "train")
    ragged = len(set(lengths)) > 1
    lengths_B = torch.tensor(lengths, device=tokens_BT.device) if ragged else None
    context = Context(selection=rule, lengths_B=lengths_B)
    with FlopCounter() as counter, torch.set_grad_enabled(phase == "train"):
        logits_BTV = twin(tokens_BT, context)
        if phase == "train":
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
            (loss + context.trace.auxiliary_loss()).backward()
    return context, counter


@torch.no_grad()
def saving(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 11: where a layer shows who is ``selected``, or leaves some tokens alone, its matmuls run
    for no more rows than the others fill: the sequences that send any, times the most that one of them
    sends. Routers and predictors see every token; attention scores are probe 9's."""
    if not subject.skips:
        return None, NOBODY_SKIPS
    model = subject.twin().eval()
    skipped, spent, everything = 0, 0, 0
    found = False
    for rule in RULES:
        context = Context(selection=rule, tokens_BT=tokens_BT)
        x_BTD = model.embedding(tokens_BT)
        for number, layer in enumerate(model.layers):
            before_BTD = x_BTD
            with FlopCounter() as counter:
                x_BTD = layer(before_BTD, context)
            selected_BT, block = selected(context, number, before_BTD, x_BTD), plain_block(layer)
            if selected_BT is None or block is None:
                continue
            found = True
            sent = [n for n in selected_BT.sum(1).tolist() if n]
            load = Load(
                lengths=(max(sent),) * len(sent) if sent else (0,),
                counts={
                    key: value
                    for key, value in context.trace.counts.items()
                    if key[1] not in ("depth", "past")
                },
            )
            own, allowed = _by_token(counter.ledger), _by_token(block.ledger(load)) if sent else 0
            if own > allowed:
                return False, (
                    f"layer {number} spends {own / max(1, allowed):.2f} times what the "
                    f"{sum(sent)} of {selected_BT.numel()} tokens cost that it selects ({rule})"
                )
            skipped += int((~selected_BT).sum())
            spent += own
            everything += _by_token(block.ledger(Load.uniform(*tokens_BT.shape)))
    if not found:
        return None, NO_BLOCK
    if not skipped:
        return None, "no token skips a layer"
    return True, f"routed layers spend {spent / everything:.3f} of what all tokens would cost"


def _by_token(ledger: Ledger) -> int:
    """Forward FLOPs of what each row costs by itself."""
    return sum(
        flops.full
        for (_, component, direction), flops in ledger
        if direction == "forward" and component not in NOT_BY_TOKEN
    )
