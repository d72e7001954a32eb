"""Probe 11: what is skipped is not computed.

B sequences, T tokens, D model width.
"""

import torch
from torch import Tensor

from modbench.counting.counter import FlopCounter
from modbench.ledger import Ledger, Workload
from modbench.measure.audit.finding import (
    NOBODY_SKIPS,
    RULES,
    Outcome,
    Subject,
    plain_block,
    selected,
)
from modbench.model.context import Context

#: What every token may cost, and what does not grow by the token.
NOT_BY_TOKEN = ("router", "predictor", "attention.scores")


def saving(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 11: where a layer shows who is ``selected``, or leaves some tokens alone, its matmuls run
    for no more rows than the others fill: the sequences that send any, times the most that one of them
    sends. Under the training rule that is asked of a model in training. Routers and predictors see every
    token; attention scores are probe 9's."""
    if not subject.skips:
        return None, NOBODY_SKIPS
    model = subject.twin()
    skipped, spent, everything = 0, 0, 0
    found = False
    for rule in RULES:
        trains = rule == "topk"
        model.train(trains)
        context = Context(selection=rule, tokens_BT=tokens_BT)
        x_BTD = model.embedding(tokens_BT)
        for number, layer in enumerate(model.layers):
            before_BTD = x_BTD
            with FlopCounter() as counter, torch.set_grad_enabled(trains):
                x_BTD = layer(before_BTD, context)
            selected_BT, block = selected(context, number, before_BTD, x_BTD), plain_block(layer)
            if selected_BT is None or block is None:
                continue
            found = True
            sent = [n for n in selected_BT.sum(1).tolist() if n]
            workload = Workload(
                lengths=(max(sent),) * len(sent) if sent else (0,),
                counts={
                    key: value
                    for key, value in context.trace.counts.items()
                    if key[1] not in ("depth", "past")
                },
            )
            own, allowed = _by_token(counter.ledger), _by_token(block.ledger(workload)) if sent else 0
            if own > allowed:
                return False, (
                    f"layer {number} spends {own / max(1, allowed):.2f} times what the "
                    f"{sum(sent)} of {selected_BT.numel()} tokens cost that it selects ({rule})"
                )
            skipped += int((~selected_BT).sum())
            spent += own
            everything += _by_token(block.ledger(Workload.uniform(*tokens_BT.shape)))
    if not found or not skipped:
        return subject.held(None, "no token skips a layer")
    share = spent / everything
    return subject.held(True, f"routed layers spend {share:.3f} of what all tokens would cost")


def _by_token(ledger: Ledger) -> int:
    """Forward FLOPs of what each row costs by itself."""
    return sum(
        flops.full
        for (_, component, direction), flops in ledger
        if direction == "forward" and component not in NOT_BY_TOKEN
    )
