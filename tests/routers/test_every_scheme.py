"""Properties of every scheme: `layer_checks` runs on each kind of options."""

from collections.abc import Callable

import layer_checks as checks
import pytest
import torch
from layer_checks import Scheme

from modbench.audit import audit
from modbench.model.config import ModelConfig

THREE = ModelConfig(vocabulary=97, width=32, layers=3, heads=4, kv_heads=2, mlp_width=48)
FIVE = ModelConfig(
    vocabulary=101, width=24, layers=5, heads=6, kv_heads=2, mlp="gelu", mlp_width=20, tied_head=False
)
DEEPSEEK = {"experts": 16, "top_k": 4, "groups": 4, "top_groups": 2, "affinity": "sigmoid"}

#: Router, options, shape; the first of each router runs in every run of the tests.
SCHEMES: dict[str, Scheme] = {
    name: Scheme(name.partition("/")[0], options, FIVE if "recursions" in name else THREE)
    for name, options in {
        "vanilla": {},
        "mod": {},
        "mod/placed": {"every": 3, "offset": 1, "last_dense": 1, "capacity": 0.4, "gate": "sigmoid"},
        "mod/full": {"residual": "full", "causal": "ema_threshold", "capacity": 1.0},
        "mod/gaussian": {"scores": "gaussian", "capacity": 0.4, "every": 1},
        "mod/hash": {"scores": "hash"},
        "mod/stride": {"scores": "stride", "capacity": 0.3, "every": 1},
        "token_choice": {"capacity_factor": 1.0, "shared_experts": 2, "shared_gate": True},
        "token_choice/groups": {**DEEPSEEK, "bias_step": 0.01, "shared_experts": 1, "expert_width": 6},
        "expert_choice": {},
        "expert_choice/batch": {"pool": "batch", "experts": 3, "capacity": 1.0, "expert_width": 9},
        "expert_threshold": {},
        "expert_threshold/softmax": {"gate": "softmax", "capacity": 1.0, "expert_width": 7},
        "relu_routing": {},
        "threshold_skip": {},
        "threshold_skip/eighth": {"target": 0.125, "every": 1, "gate": "sigmoid", "penalty": 3.0},
        "mode_integrated": {"capacity_factor": 1.5, "bias_step": 0.01, "shared_experts": 1},
        "mode_staged": {},
        "mode_staged/drops": {"capacity": 0.4, "capacity_factor": 1.0, "bias_step": 0.01},
        "mode_staged/chosen": {"experts_by": "expert_choice", "causal": "ema_threshold", "every": 1},
        "mixture_of_recursions": {"recursions": 3},
        "mixture_of_recursions/token": {"depth": "token_choice", "recursions": 3, "gate_scale": 0.7},
    }.items()
}

every_scheme = pytest.mark.parametrize(
    "name", checks.full_except(SCHEMES, *(name for name in SCHEMES if "/" not in name))
)


@every_scheme
@pytest.mark.parametrize(
    "check",
    [
        checks.costs_what_it_selects,
        checks.costs_its_nominal_flops,
        checks.frozen_parts_cost_no_gradient,
        checks.decodes_what_it_scores,
        checks.runs_again_as_it_ran,
        checks.stands_in_every_dtype,
        checks.saves_and_loads,
    ],
    ids=lambda check: check.__name__,
)
def test_every_scheme(check: Callable[[Scheme], object], name: str) -> None:
    check(SCHEMES[name])


@pytest.mark.full
@pytest.mark.parametrize("name", SCHEMES)
def test_in_half_precision_it_costs_as_much(name: str) -> None:
    checks.costs_what_it_selects(SCHEMES[name], torch.bfloat16)
    checks.costs_its_nominal_flops(SCHEMES[name], torch.bfloat16)


@pytest.mark.full
@pytest.mark.parametrize("name", SCHEMES)
def test_it_passes_the_audit(name: str) -> None:
    """Adding the stream once more may be what probe 6 finds; one option asks for it."""
    failed = {finding.probe for finding in audit(SCHEMES[name].warmed()) if finding.failed}
    assert failed <= ({6} if SCHEMES[name].options.get("residual") == "full" else set())
