"""Texts on the audit of the runs of a row, and on its routed layers: from their findings."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from modbench.analysis.idle_layers import LEAST_VARIED, gate_range, gates_line, is_idle, layer_line
from modbench.records.probes import PROBE_TEXTS, RANKING_PROBES, SHOWN, leak_verdict
from modbench.records.record import AuditRecord
from modbench.records.result import Result
from modbench.records.sections import RoutedLayer, Routing

#: Findings, rows of `findings_frame`, by the number of their run.
Findings = Mapping[int, Sequence[Any]]


def by_run(findings: pd.DataFrame) -> Findings:
    """The rows of ``findings`` as named tuples, by run."""
    runs: dict[int, list[Any]] = defaultdict(list)
    for finding in findings.itertuples(index=False, name="Finding"):
        runs[finding.run].append(finding)
    return runs


def is_audited(keys: Iterable[str | None], audits: Mapping[str, AuditRecord]) -> bool:
    """Return True unless the audit of a scheme, by the key in its results, is missing."""
    return all(key is None or key in audits for key in keys)


def _failures(findings: Iterable[Any]) -> list[tuple[bool, int, str, str]]:
    """Failed probes, each once: True unless it prevents ranking, number, name, figure."""
    failed = (of for of in findings if of.verdict == "failed")
    return sorted({(not of.bars, of.probe, of.name, of.figure) for of in failed})


def audit_text(findings: Sequence[Any]) -> str:
    """``passed 7, unchecked 3, n/a 1``, or the probes that failed in any run."""
    if not findings:
        return "not run"
    if failures := _failures(findings):
        failed = sorted({(number, name) for _, number, name, _ in failures})
        return "failed " + ", ".join(f"{number} {name}" for number, name in failed)
    order = ("not asked", "passed", "unchecked")
    probes = sorted(findings, key=lambda of: order.index(of.verdict))
    counts = Counter(SHOWN.get(v, v) for v in {of.probe: of.verdict for of in probes}.values())
    rest = (f", {name} {counts[name]}" for name in ("unchecked", "n/a") if counts[name])
    return f"passed {counts['passed']}{''.join(rest)}"


def audit_failures(findings: Sequence[Any]) -> str:
    """Failed probes with their figures, those that prevent ranking first; empty without any."""
    failed = (f"{number} {name} ({figure})" for _, number, name, figure in _failures(findings))
    text = ", ".join(failed)
    return f"failed audit probe {text}" if text else ""


def why_unranked(
    results: Mapping[int, Result], findings: Findings, audits: Mapping[str, AuditRecord]
) -> str:
    """Why a row of ``results``, one per seed, by number, can't be ranked, whatever its figures; empty if
    it can."""
    if lost := [result for result in results.values() if result.status != "ok"]:
        return "; ".join(f"seed {run.seed} {run.status}: {run.error}" for run in lost)
    every = [of for number in results for of in findings.get(number, ())]
    if any(of.verdict == "failed" and of.bars for of in every):
        return audit_failures(every)
    if not is_audited([of.audit_key for of in results.values()], audits):
        return "audit was not run"
    for number in results:
        known = (of for of in findings.get(number, ()) if of.verdict in ("passed", "failed"))
        run = {of.probe for of in known}
        if missing := [str(probe) for probe in RANKING_PROBES if probe not in run]:
            return f"not run of the audit: probe {', '.join(missing)}; add audit to [measure] steps"
    return ""


def leak_of(runs: Iterable[Sequence[Any]]) -> str:
    """The audit's verdict on leaks: ``passed`` if that of every run is, else the first other one."""
    verdicts = [leak_verdict(of_run) for of_run in runs]
    failed = next((verdict for verdict in verdicts if verdict != "passed"), None)
    return failed or ("passed" if verdicts else "not audited")


def lacking_probes(findings: pd.DataFrame) -> list[str]:
    """Number and name of each probe that the audit of a run lacks, such as those of later versions."""
    runs = findings.groupby("run")["probe"].agg(set)
    return [f"{of.number} {of.name}" for of in PROBE_TEXTS if any(of.number not in run for run in runs)]


def idle_layers(seeds: Iterable[Sequence[RoutedLayer]]) -> list[str]:
    """A remark for each layer that adds next to nothing in any of ``seeds``, with the figures of the
    seed in which it adds least."""
    remarks = []
    entries = [entry for layers in seeds for entry in layers if entry.added is not None]
    for layer in sorted({entry.layer for entry in entries}):
        of_layer = sorted((e for e in entries if e.layer == layer), key=lambda entry: entry.added or 0)
        if idle := sum(is_idle(entry.added) for entry in of_layer):
            remarks.append(layer_line(**dict(of_layer[0])) + _of_seeds(idle, len(of_layer)))
    return remarks


def even_gates(seeds: Iterable[tuple[Routing | None, Sequence[RoutedLayer]]]) -> list[str]:
    """A remark for each layer whose gates hardly vary in any of ``seeds``, over all tokens under the
    causal rule, with the figures of the seed in which they vary least. A gate that is 1 for all tokens
    is that of a scheme without one."""
    ranges = defaultdict(list)
    for routing, layers in seeds:
        scales = {entry.layer: entry.gate_scale for entry in layers}
        for entry in routing.causal.depth if routing else ():
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
