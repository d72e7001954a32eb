"""The command `modbench traces`."""

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from modbench.cli.options import Results, Run
from modbench.errors import UserError


def traces(
    run: Run,
    /,
    *,
    out: Annotated[Path, arg(metavar="FILE")],
    share: float = 1.0,
    results: Results = Path("my-results"),
) -> int:
    """Write the recorded routing of a run as Parquet: a row per token and routed layer.

    Example: modbench traces routing-over-training/mod --out mod.parquet

    Args:
        run: a trained run, SUITE/LABEL@BUDGET#SEED such as quick/mod@1e12#0 (parts after the
            label may be left out; of several seeds the first is taken)
        out: file to write
        share: share of the run at which routing was recorded; gates and losses are those of the end
        results: folder that holds one folder per suite
    """
    from modbench.records.store import write_files
    from modbench.trained.load import find_result

    _, result = find_result(run, results)
    if result.traces is None:
        ask = "give its suite [measure] routing_points, and run it"
        raise UserError(f"run '{run}' has no recorded routing; {ask}")
    known = [point.share for point in result.traces.points]
    if share not in known:
        raise UserError(f"--share {share:g}: the routing of '{run}' is recorded at {known}; give one")
    if not result.traces.points[known.index(share)].layers:
        raise UserError(f"run '{run}' routes nothing; name one of another router")
    write_files(out.parent, {out.name: token_frame(result.traces, share).to_parquet(index=False)})
    print(out)
    return 0


def token_frame(traces: Any, share: float) -> Any:
    """The frame of a `modbench.records.traces.Traces` at a ``share``. Gate and loss are missing before
    the end, ``selected`` in a layer that all tokens reach, and ``experts`` in one without."""
    import numpy as np
    import pandas as pd

    arrays = traces.arrays()
    place_N, is_end = np.arange(arrays.ids_WT.size), share == max(arrays.points)
    parts = []
    for layer in sorted({number for number, _ in arrays.points[share]}):
        depth, experts = (arrays.points[share].get((layer, kind)) for kind in ("depth", "experts"))
        columns = {
            "window": place_N // traces.sequence,
            "position": place_N % traces.sequence,
            "id": arrays.ids_WT.ravel(),
            "document": arrays.documents_WT.ravel(),
            "layer": layer,
            "selected": None if depth is None else depth.chosen_NE[:, 0],
            "experts": None if experts is None else [row.nonzero()[0] for row in experts.chosen_NE],
            "gate": (depth or experts).gates_N if is_end else None,
            "loss": arrays.losses_WT.ravel() if is_end else None,
        }
        parts.append(pd.DataFrame(columns).astype({"selected": "boolean", "gate": float, "loss": float}))
    return pd.concat(parts, ignore_index=True)
