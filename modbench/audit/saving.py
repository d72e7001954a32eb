"""Probe 11: skipped tokens are not computed.

B sequences, T tokens, D model width.
"""

import torch
from torch import Tensor

from modbench.audit.finding import (
    NO_SKIPPING,
    RULES,
    Outcome,
    Subject,
    few,
    plain_block,
    selected,
)
from modbench.counting.counter import FlopCounter
from modbench.ledger import Ledger, Workload
from modbench.model.context import Context
from modbench.model.layer import Layer

#: Components computed for every token, those not linear in the number of tokens, and matmuls that carry
#: no label, as in the scores of a layer that states no ledger.
NOT_BY_TOKEN = ("router", "predictor", "attention.scores", "other")


def saving(subject: Subject, tokens_BT: Tensor) -> Outcome:
    """Probe 11: in a layer that skips tokens, matmuls run for no more rows than the selected tokens fill
    when padded: the sequences with any, times the most that one of them has. The training rule is tested
    in training mode. Routers and predictors may see every token; attention scores are probe 9's."""
    if not subject.skipping:
        return None, NO_SKIPPING
    tokens_BT = few(tokens_BT)
    model = subject.twin()
    skipped, spent, everything = 0, 0, 0
    measured = False
    for rule in RULES:
        model.train(rule == "topk")
        context = Context(selection=rule)
        ledgers = list[Ledger]()

        def run_counted(layer: Layer, x_BTD: Tensor, context: Context) -> Tensor:
            with FlopCounter() as counter, torch.set_grad_enabled(context.selection == "topk"):
                out_BTD: Tensor = layer(x_BTD, context)
            ledgers.append(counter.ledger)  # noqa: B023
            return out_BTD

        for number, layer, before_BTD, after_BTD in model.layer_by_layer(
            tokens_BT, context, run_counted
        ):
            selected_BT = selected(context, number, before_BTD, after_BTD)
            block = plain_block(layer)
            if selected_BT is None or block is None:
                continue
            measured = True
            sent = [n for n in selected_BT.sum(1).tolist() if n]
            inner = {
                key: n for key, n in context.trace.counts.items() if key[1] not in ("depth", "past")
            }
            workload = Workload(lengths=(max(sent, default=0),) * max(1, len(sent)), counts=inner)
            flops = _by_token(ledgers[-1])
            allowed = _by_token(block.ledger(workload)) if sent else 0
            if flops > allowed:
                return False, (
                    f"layer {number} spends {flops / max(1, allowed):.2f} times the FLOPs of the "
                    f"{sum(sent)} of {selected_BT.numel()} tokens that it selects ({rule})"
                )
            skipped += int((~selected_BT).sum())
            spent += flops
            everything += _by_token(block.ledger(Workload.uniform(*tokens_BT.shape)))
    if not measured or not skipped:
        return subject.held(None, "no layer skips tokens")
    share = spent / everything
    return subject.held(True, f"routed layers spend {share:.3f} of the FLOPs of all tokens")


def _by_token(ledger: Ledger) -> int:
    """Forward FLOPs of the components that are linear in the number of tokens."""
    return sum(
        flops.full
        for (_, component, direction), flops in ledger
        if direction == "forward" and component not in NOT_BY_TOKEN
    )
