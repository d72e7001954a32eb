"""Builds the workload that a user asks for."""

from modbench.errors import UserError, known_names
from modbench.ledger import PHASES, Workload


def uniform_workload(sequences: int, length: int, phase: str, past: int) -> Workload:
    """Return a workload of ``sequences`` sequences of ``length`` new tokens, each after ``past`` cached
    ones.

    Raises:
        UserError: an unknown phase, or a size that cannot be.
    """
    if phase not in PHASES:
        raise UserError(f"phase '{phase}' is not known; {known_names(phase, PHASES)}")
    try:
        return Workload.uniform(sequences, length, phase, past)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from error
