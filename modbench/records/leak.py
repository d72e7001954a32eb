"""The audit's verdict on whether a trained model looks ahead or at other sequences of its batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from modbench.records.record import AuditRecord

#: Probes that a leak fails: 1 causal, 2 batch-invariant.
LEAK_PROBES = (1, 2)


def leak_verdict(
    audits: Mapping[str, AuditRecord], key: str | None, trained: Sequence[Mapping[str, Any]]
) -> str:
    """Return ``passed``; ``failed`` with the probe and its figure; or ``not audited``. Both the audit of
    the scheme, ``key`` of ``audits``, and the probes of the trained weights count."""
    audit = audits.get(key or "")
    probes = [*(audit.audit if audit else ()), *trained]
    found = [probe for probe in probes if probe["probe"] in LEAK_PROBES]
    for probe in found:
        if probe["verdict"] == "failed":
            return f"failed probe {probe['probe']} {probe['name']}: {probe['figure']}"
    passed = {probe["probe"] for probe in found if probe["verdict"] == "passed"}
    return "passed" if passed == set(LEAK_PROBES) else "not audited"
