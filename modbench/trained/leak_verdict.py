"""The audit's verdict on whether a trained model looks ahead or at other sequences of its batch."""

from modbench.report.store import read_suite
from modbench.trained.load import Loaded

#: Probes that a leak fails: 1 causal, 2 batch-invariant.
LEAK_PROBES = (1, 2)


def leak_verdict(loaded: Loaded) -> str:
    """Return ``passed``; ``failed`` with the probe and its figure; or ``not audited``, where the audit
    of the scheme is missing. Both that and the probes of the trained weights count."""
    record = loaded.record
    if record is None:
        return "not audited"
    probes = list(record.audit)
    suite = loaded.folder.resolve().parents[1]
    for audit in read_suite(suite).audits.values() if record.audit_key else ():
        if audit.key == record.audit_key:
            probes += audit.audit
    found = [probe for probe in probes if probe["probe"] in LEAK_PROBES]
    for probe in found:
        if probe["verdict"] == "failed":
            return f"failed probe {probe['probe']} {probe['name']}: {probe['figure']}"
    passed = {probe["probe"] for probe in found if probe["verdict"] == "passed"}
    return "passed" if passed == set(LEAK_PROBES) else "not audited"
