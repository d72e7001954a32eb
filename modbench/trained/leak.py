"""The audit's verdict on leaks of a trained model."""

from modbench.report.downstream_leak import leak_verdict
from modbench.report.store import read_suite
from modbench.trained.load import Loaded


def leak_of(loaded: Loaded) -> str:
    """Return the verdict of `leak_verdict`; ``not audited`` for weights without their results."""
    record = loaded.record
    if record is None:
        return "not audited"
    audits = read_suite(loaded.folder.resolve().parents[1]).audits
    return leak_verdict(audits, record.audit_key, record.audit)
