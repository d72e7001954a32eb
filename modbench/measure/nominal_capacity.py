"""Nominal capacity of routed layers, read off the ledger, which every scheme has: a nominal count of a
layer is the one at which the ledger equals the nominal ledger."""

from bisect import bisect_left

from modbench.ledger import Workload
from modbench.model.trace import Trace
from modbench.routing.build import RoutedDecoder


def nominal_capacities(model: RoutedDecoder, trace: Trace, tokens: int) -> dict[str, float]:
    """Nominal values of ``realised_capacity`` and ``expert_realised_capacity`` for sequences of
    ``tokens``, averaged over the layers that show ``selected`` or ``taken`` in ``trace`` (causal rule)
    and whose ledger depends on the count that they report. Empty if none does."""
    depth: dict[int, float] = {}
    experts: list[float] = []
    for layer, name in sorted(trace.counts, key=lambda key: key[1]):  # "depth" comes first
        if name == "depth" and (layer, "selected") in trace.tensors:
            count = _nominal_count(model, (layer, name), tokens, most=tokens)
            if count is not None:
                depth[layer] = count
        elif name == "experts" and (layer, "taken") in trace.tensors:
            most = tokens * trace.tensors[layer, "load"].numel()
            count = _nominal_count(model, (layer, name), tokens, most=most)
            if count is not None:
                # Of the tokens that reach the experts.
                experts.append(count / depth.get(layer, tokens))
    found = {}
    if depth:
        found["nominal_capacity"] = sum(depth.values()) / len(depth) / tokens
    if experts:
        found["expert_nominal_capacity"] = sum(experts) / len(experts)
    return found


def _nominal_count(model: RoutedDecoder, key: tuple[int, str], tokens: int, *, most: int) -> int | None:
    """The smallest count of ``key``, at most ``most``, at which the ledger of one sequence of ``tokens``
    reaches the nominal one; None if the ledger does not depend on the count."""

    def flops(count: int) -> int:
        return model.ledger(Workload(lengths=(tokens,), counts={key: (count,)})).total()

    if flops(0) == flops(most):
        return None
    nominal = model.ledger(Workload(lengths=(tokens,))).total()
    return bisect_left(range(most), nominal, key=flops)
