"""The parameters that probe 8 expects a gradient for, and those that have one.

D model width, E experts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from modbench.measure.audit.finding import routers
from modbench.routing.build import RoutedDecoder

#: Largest entry of a gradient that is rounding in float64, relative to the largest of all parameters.
ROUNDED = 1e-13
NO_GATE = (
    ": no gate depends on its scores; multiply the output of a block or expert by a gate that does (not "
    "detached, and not renormalised over a single expert), or use no scorer"
)


@dataclass(frozen=True)
class Parts:
    """Names of trained parameters: those of each scorer, a module named ``router``; others with "router"
    in their name; and groups of which one parameter or more must be reached by some loss."""

    scorers: Mapping[str, frozenset[str]]
    named: frozenset[str]
    groups: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, model: RoutedDecoder) -> "Parts":
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        modules = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "router"]
        scorers = {
            module: frozenset(name for name in trained if name.startswith(f"{module}."))
            for module in modules
        }
        scorers = {module: names for module, names in scorers.items() if names}
        inside = frozenset[str]().union(*scorers.values())
        named = frozenset(routers(model)) & frozenset(trained) - inside
        groups = {name: frozenset((name,)) for name in [*own_parameters(model), *sorted(inside)]}
        return cls(scorers, named, _held_modules(model) | groups)

    @property
    def router_names(self) -> frozenset[str]:
        return self.named.union(*self.scorers.values())

    def lost(self, by_text: frozenset[str], idle: set[str]) -> str:
        """The first parameter or scorer that cross-entropy does not reach, though it must; empty if
        there is none."""
        for name in sorted(self.named - by_text - idle):
            return name
        for module, names in self.scorers.items():
            if names - idle and not names & by_text:
                return module + NO_GATE
        return ""

    def untaught(self, by_losses: frozenset[str], idle: set[str]) -> str:
        """The first parameter that no loss reaches, though one must; empty if there is none."""
        for name, group in self.groups.items():
            if not group & by_losses and not group <= idle:
                return name
        return ""


def reached(model: RoutedDecoder) -> frozenset[str]:
    """Names of parameters whose gradient is finite and above rounding."""
    most = {
        name: parameter.grad.abs().max().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.isfinite().all()
    }
    bound = ROUNDED * max(most.values(), default=0.0)
    return frozenset(name for name, value in most.items() if value > bound)


def own_parameters(model: RoutedDecoder) -> list[str]:
    """Trained parameters held by the scheme's own classes, not by those of modbench.model or torch."""
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if _is_own(module)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]


def _held_modules(model: RoutedDecoder) -> dict[str, frozenset[str]]:
    """Trained parameters of PyTorch's modules that the scheme's own classes hold, by the first of them
    and for each attribute: an expert of several may be without tokens."""
    found = {}
    for name, module in model.named_modules():
        if not _is_own(module):
            continue
        for key, child in module.named_children():
            names = frozenset(f"{name}.{key}.{inner}" for inner in _of_torch(child))
            if names:
                found[min(names)] = names
    return found


def _of_torch(module: nn.Module) -> Iterator[str]:
    """Trained parameters of ``module`` if it is one of PyTorch's, and of those inside it."""
    if not type(module).__module__.startswith("torch."):
        return
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.requires_grad:
            yield key
    for name, child in module.named_children():
        for key in _of_torch(child):
            yield f"{name}.{key}"


def _is_own(module: nn.Module) -> bool:
    """Return True if the class of ``module`` is the scheme's own."""
    made_of = ("modbench.model.", "torch.")
    return not isinstance(module, RoutedDecoder) and not type(module).__module__.startswith(made_of)
