"""Cells of tables: metrics of a row as text."""

import re
from collections.abc import Sequence

from modbench.report.leaderboard import Leaderboard
from modbench.report.metrics import METRICS
from modbench.report.row import Row

_FIELD = re.compile(r"\{(\w+):([^}]*)\}")
#: Heading of each column and its cells: metrics and their formats, see `metric_text`.
COLUMNS = {
    "held-out loss (nats/token)": "{heldout_loss:.4f}",
    "bits/byte": "{heldout_bits_per_byte:.4f}",
    "leaky loss (nats/token)": "{heldout_loss_leaky:.4f}",
    "leak (nats/token)": "{leak:.4f}",
    "cloze accuracy (untrained, chance)": (
        "{modbench_cloze:.3f} ({modbench_cloze_untrained:.3f}, {modbench_cloze_chance:.3f})"
    ),
    "forward FLOP/token, nominal / realised": (
        "{forward_flops_per_token:si} / {forward_flops_per_token_realised:si}"
    ),
    "training FLOP spent": "{train_flops:si}",
    "steps": "{train_steps:d}",
    "tokens": "{train_tokens:d}",
    "training step (ms), median ± IQR": "{train_step_seconds:ms}",
    "peak memory (MB)": "{peak_memory_bytes:MB}",
    "KV cache (B/token, share of dense)": "{kv_cache_bytes_per_token:.0f} ({kv_cache_share:.3f})",
    "parameters, active / all": "{active_parameters:si} / {parameters:si}",
}
_UNITS = {"ms": 1e-3, "MB": 1e6}


def metric_columns(board: Leaderboard, rows: Sequence[Row]) -> dict[str, list[str]]:
    """The cells of ``rows`` by heading, without the columns in which no row has a value. One is of the
    metric that ranks ``board``."""
    columns = {
        heading: [cell(board, row, form) for row in rows] for heading, form in forms(board).items()
    }
    return {heading: cells for heading, cells in columns.items() if {*cells} != {"-"}}


def forms(board: Leaderboard) -> dict[str, str]:
    """`COLUMNS`, with one of the metric that ranks ``board`` in front if it has none."""
    name = board.rank_by
    if any(f"{{{name}:" in template for template in COLUMNS.values()):
        return COLUMNS
    form = "" if METRICS[name].kind == "exact" else ".4f"
    return {f"{name} ({METRICS[name].unit})": f"{{{name}:{form}}}", **COLUMNS}


def cell(board: Leaderboard, row: Row, template: str) -> str:
    """``template`` with the figures of ``row``; "-" if none was measured."""
    shown = [metric_text(board, row, *field) for field in _FIELD.findall(template)]
    return _FIELD.sub("{}", template).format(*shown) if {*shown} != {"-"} else "-"


def si(value: float) -> str:
    """``value`` with four significant digits and an SI prefix: 1.234 T."""
    digits, exponent = f"{value:.3e}".split("e")
    power = min(max(int(exponent) // 3, 0), 8)
    return f"{float(digits) * 10 ** (int(exponent) - 3 * power):#.4g} {' kMGTPEZY'[power]}".rstrip()


def metric_text(board: Leaderboard, row: Row, name: str, form: str) -> str:
    """The metric ``name`` of ``row`` as ``form``: si, ms, MB or one of Python's; "-" if not measured."""

    def text(number: float) -> str:
        if form == "si":
            return si(number)
        if form in _UNITS:
            return f"{number / _UNITS[form]:.1f}"
        return f"{number:{f'z{form}' if form.endswith('f') else form}}"  # z: no sign for rounded zeros

    value = board.value(row, name)
    if value is None:
        return "-"
    shown, spread = text(value.center), value.spread
    if METRICS[name].kind == "exact":
        return f"{shown}..{text(value.center + spread)}" if spread else shown
    marks = f" ({value.marks})" if value.marks else ""
    return shown + ("" if spread is None else f" ± {text(spread)}") + marks
