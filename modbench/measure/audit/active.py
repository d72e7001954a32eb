"""Part of probe 9: the active parameters of a layer are at least what the FLOPs of a token imply."""

from collections.abc import Iterator

from modbench.ledger import Workload
from modbench.measure.audit.finding import Subject

#: Tokens over which FLOPs are averaged: where experts choose tokens, one token alone gets every expert.
TOKENS = 512
#: A component whose FLOPs use no parameters.
WITHOUT_PARAMETERS = "attention.scores"


def too_few_active(subject: Subject) -> str:
    """Name the first layer with fewer active parameters than the FLOPs of a token imply, if any. A
    matmul spends 2 FLOPs per parameter and token. A layer that applies its parameters repeatedly must
    report all of them at most. Tokens are routed at every depth."""
    model = subject.model
    for number, (active, flops) in enumerate(
        zip(model.active_by_layer(), _flops_of_a_token(subject), strict=True)
    ):
        total = sum(parameter.numel() for parameter in model.layers[number].parameters())
        implied = min(flops // 2, total)
        if active < implied:
            return (
                f"layer {number} reports {active:,} active parameters; the FLOPs of a token imply "
                f"{implied:,} or more"
            )
    return ""


def _flops_of_a_token(subject: Subject) -> Iterator[int]:
    """Nominal forward FLOPs of each layer per token, rounded down."""
    model, full = subject.model, Workload.uniform(1, TOKENS)
    for number in range(len(model.layers)):
        nominal = model.layer_nominal_counts(number, full)
        counts = {key: (TOKENS,) for key in nominal if key[1] == "depth"}
        workload = Workload(lengths=full.lengths, counts=counts)
        spent = model.layer_ledger(number, workload)
        yield (sum(flops.model for (_, part, _), flops in spent if part != WITHOUT_PARAMETERS) // TOKENS)
