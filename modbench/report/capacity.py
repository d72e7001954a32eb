"""Rows whose causal rule selects far from the nominal capacity: their nominal FLOPs are not those of the
model that is scored."""

from modbench.report.row import Exact, Quality, Row

#: A causal rule that selects more than `FAR` times the nominal capacity, or less than 1 / `FAR` of it,
#: is marked.
FAR = 1.5

#: Realised capacity, nominal capacity, what they count.
_CAPACITIES = (
    ("realised_capacity", "nominal_capacity", "of tokens"),
    ("expert_realised_capacity", "expert_nominal_capacity", "experts per token"),
)


def far_from_nominal(row: Row) -> str:
    """Describe a causal rule that selects far from its nominal capacity, mean over seeds; empty if none
    does, or if the records hold no nominal capacity."""
    found = []
    for realised_name, nominal_name, unit in _CAPACITIES:
        realised, nominal = row.value(realised_name), row.value(nominal_name)
        if not isinstance(realised, Quality) or not isinstance(nominal, Exact):
            continue
        if not nominal.low / FAR <= realised.mean <= nominal.low * FAR:
            selects = f"causal rule selects {realised.mean:.3g} {unit}"
            found.append(f"{selects}, nominal {nominal.low:.3g}")
    return "; ".join(found)
