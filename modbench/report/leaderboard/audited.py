"""The audit of the runs of a row: findings, verdicts, and reasons not to rank it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from modbench.analysis.idle_layers import LEAST_VARIED, gate_range, gates_line, is_idle, layer_line
from modbench.records.probes import PROBE_TEXTS, RANKING_PROBES, SHOWN, leak_verdict
from modbench.records.record import AuditRecord, Finding
from modbench.records.result import Result

Audits = Mapping[str, AuditRecord]


def findings(result: Result, audits: Audits) -> list[Finding]:
    """The findings of the audit of the scheme of ``result``, and those on its trained weights."""
    audit = audits.get(result.audit_key or "")
    return [*(audit.audit if audit else ()), *result.audit]


def _failures(by_run: Sequence[Sequence[Finding]]) -> list[tuple[bool, int, str, str]]:
    """Failed probes, each once: True unless it prevents ranking, number, name, figure."""
    failed = [probe for probes in by_run for probe in probes if probe.verdict == "failed"]
    return sorted(
        {
            (
                not (probe.ranks or probe.probe in RANKING_PROBES),
                probe.probe,
                probe.name,
                probe.figure,
            )
            for probe in failed
        }
    )


def _is_audited(results: Sequence[Result], audits: Audits) -> bool:
    """Return True unless the audit of a result's scheme is missing."""
    return all(result.audit_key in (None, *audits) for result in results)


def audit_text(results: Sequence[Result], audits: Audits) -> str:
    """``passed 7, unchecked 3, n/a 1``, or the probes that failed in any run."""
    by_run = [findings(result, audits) for result in results]
    probes = [probe for of_run in by_run for probe in of_run]
    if not probes or not _is_audited(results, audits):
        return "not run"
    if failures := _failures(by_run):
        failed = sorted({(number, name) for _, number, name, _ in failures})
        return "failed " + ", ".join(f"{number} {name}" for number, name in failed)
    order = ("not asked", "passed", "unchecked")
    probes.sort(key=lambda probe: order.index(probe.verdict))
    counts = Counter(SHOWN.get(v, v) for v in {probe.probe: probe.verdict for probe in probes}.values())
    rest = (f", {name} {counts[name]}" for name in ("unchecked", "n/a") if counts[name])
    return f"passed {counts['passed']}{''.join(rest)}"


def lacking_probes(results: Sequence[Result], audits: Audits) -> list[str]:
    """Number and name of each probe that an audit of ``results`` lacks, such as those of later
    versions."""
    by_run = [findings(result, audits) for result in results if _is_audited([result], audits)]
    run = [{finding.probe for finding in probes} for probes in by_run if probes]
    return [f"{of.number} {of.name}" for of in PROBE_TEXTS if any(of.number not in some for some in run)]


def audit_failures(results: Sequence[Result], audits: Audits) -> str:
    """Failed probes with their figures, those that prevent ranking first; empty without any."""
    failures = _failures([findings(result, audits) for result in results])
    failed = (f"{number} {name} ({figure})" for _, number, name, figure in failures)
    return f"failed audit probe {', '.join(failed)}" if failures else ""


def why_unranked(results: Sequence[Result], audits: Audits) -> str:
    """Why a row of ``results``, one per seed, can't be ranked, whatever its figures; empty if it can."""
    lost = [result for result in results if result.status != "ok"]
    if lost:
        return "; ".join(f"seed {run.seed} {run.status}: {run.error}" for run in lost)
    by_run = [findings(result, audits) for result in results]
    failures = _failures(by_run)
    if failures and not failures[0][0]:
        return audit_failures(results, audits)
    if not _is_audited(results, audits):
        return "audit was not run"
    for probes in by_run:
        run = {probe.probe for probe in probes if probe.verdict in ("passed", "failed")}
        missing = [str(number) for number in RANKING_PROBES if number not in run]
        if missing:
            return f"not run of the audit: probe {', '.join(missing)}; add audit to [measure] steps"
    return ""


def leak_of(results: Sequence[Result], audits: Audits) -> str:
    """The audit's verdict on leaks: ``passed`` if that of every run is, else the first other one."""
    verdicts = [leak_verdict(findings(result, audits)) for result in results]
    failed = next((verdict for verdict in verdicts if verdict != "passed"), None)
    return failed or ("passed" if verdicts else "not audited")


def idle_layers(results: Sequence[Result]) -> list[str]:
    """A remark for each layer that adds next to nothing in any of ``results``, one per seed, with the
    figures of the seed in which it adds least."""
    remarks = []
    entries = [entry for result in results for entry in result.layers if entry.added is not None]
    for layer in sorted({entry.layer for entry in entries}):
        of_layer = sorted((e for e in entries if e.layer == layer), key=lambda entry: entry.added or 0)
        if idle := sum(is_idle(entry.added) for entry in of_layer):
            remarks.append(layer_line(**dict(of_layer[0])) + _of_seeds(idle, len(of_layer)))
    return remarks


def even_gates(results: Sequence[Result]) -> list[str]:
    """A remark for each layer whose gates hardly vary in any of ``results``, one per seed, over all
    tokens under the causal rule, with the figures of the seed in which they vary least. A gate that is 1
    for all tokens is that of a scheme without one."""
    ranges = defaultdict(list)
    for result in results:
        scales = {entry.layer: entry.gate_scale for entry in result.layers}
        for entry in result.routing.causal.depth if result.routing else ():
            scale = scales.get(entry.layer)
            if entry.gates is not None:
                gates = entry.gates
                ranges[entry.layer].append(gate_range(gates.exponent, gates.first, gates.all))
            elif scale not in (None, 1):  # all gates are equal
                ranges[entry.layer].append((scale, scale))
    remarks = []
    for layer, of_layer in sorted(ranges.items()):
        of_layer.sort(key=lambda ends: ends[1] - ends[0])
        if even := sum(high - low <= LEAST_VARIED for low, high in of_layer):
            remarks.append(gates_line(layer, *of_layer[0]) + _of_seeds(even, len(of_layer)))
    return remarks


def _of_seeds(number: int, seeds: int) -> str:
    return f", in {number} of {seeds} seeds" if seeds > 1 else ""
