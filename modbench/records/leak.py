"""The audit's verdict on whether a trained model looks ahead or at other sequences of its batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from modbench.records.probes import LEAK_PROBES


def leak_verdict(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return ``passed``; ``failed`` with the probe and its figure; or ``not audited``. ``findings``: of
    the audit of the scheme, and of the trained weights."""
    probes = [probe for probe in findings if probe["probe"] in LEAK_PROBES]
    for probe in probes:
        if probe["verdict"] == "failed":
            return f"failed probe {probe['probe']} {probe['name']}: {probe['figure']}"
    passed = {probe["probe"] for probe in probes if probe["verdict"] == "passed"}
    return "passed" if passed == set(LEAK_PROBES) else "not audited"
