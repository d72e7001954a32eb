"""The audit of a trained model, and its verdict on leaks."""

from typing import Any

from modbench.records.leak import leak_verdict
from modbench.records.store import read_audit
from modbench.trained.load import Loaded


def findings_of(loaded: Loaded) -> list[dict[str, Any]]:
    """Return the audit's findings on the scheme and on the trained weights, from the results or as they
    were exported; none for weights that were copied away without them."""
    result = loaded.result
    if result is None:
        return list(loaded.audit)
    audit = read_audit(loaded.folder.resolve().parents[1], result.audit_key or "")
    return [*(audit.audit if audit else ()), *map(dict, result.audit)]


def leak_of(loaded: Loaded) -> str:
    """Return the verdict of `leak_verdict`; ``not audited`` for weights without findings."""
    return leak_verdict(findings_of(loaded))
