"""Options that contradict each other or the model's shape are refused, by each scheme.

Bounds of a single option are declared by its type; `tests/routing/test_plugins.py` has their errors.
"""

import pytest

from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SIX = ModelConfig(vocabulary=97, width=32, layers=6, heads=4, mlp_width=64)
BY_CHOICE = {"experts_by": "expert_choice"}

REFUSED: dict[str, list[tuple[dict, str]]] = {
    "mod": [
        ({"capacity": 0.0}, "capacity is 0; it should be greater than 0"),
        ({"offset": 2}, "offset is 2 with every 2"),
        ({"scores": "hash", "gate": "sigmoid"}, "'gate' has no effect with scores 'hash'"),
        ({"scores": "gausian"}, "scores is 'gausian'"),
        ({"every": 1, "first_dense": 3, "last_dense": 3}, "no block of 6 is routed"),
    ],
    "mode_staged": [
        ({**BY_CHOICE, "top_k": 3}, "'top_k' has no effect with experts_by 'expert_choice'"),
        ({"pool": "batch"}, "'pool' has no effect with experts_by 'token_choice'"),
        ({**BY_CHOICE, "expert_capacity": 9.0}, "capacity is 9 with 8 experts"),
    ],
    "mode_integrated": [({"groups": 2, "top_groups": 1}, "groups is 2 with no_op_experts 8")],
    "token_choice": [
        ({"experts": 4, "top_k": 5}, "top_k is 5 of 4 experts"),
        ({"top_k": 1}, "top_k 1 with renormalise true"),
        ({"shared_width": 8}, "'shared_width' has no effect with shared_experts 0"),
        ({"affinity": "sigmoid", "z_loss": 0.1}, "'z_loss' has no effect with affinity 'sigmoid'"),
        ({"capacity_factor": 0.5}, "capacity_factor is 0.5"),
        ({"groups": 3}, "groups is 3 of 8 experts"),
        ({"groups": 8}, "top_k is 2 and the 1 groups that a token may choose have 1 experts"),
        ({"top_k": 5}, "can't be shared by 5 active experts"),
    ],
    "expert_choice": [({"capacity": 9.0}, "capacity is 9 with 8 experts")],
    "expert_threshold": [({"capacity": 3.0}, "can't be shared by 3 active experts")],
    "relu_routing": [({"active_experts": 9}, "active_experts is 9 of 8 experts")],
    "threshold_skip": [({"gate": "linear"}, "gate")],
    "mixture_of_recursions": [
        ({"gate_scale": float("inf")}, "gate_scale is inf"),
        ({"recursions": 3}, "layers is 6 with 3 recursions, .*; set layers to 5"),
    ],
}


@pytest.mark.parametrize(
    ("router", "options", "words"),
    [(router, *case) for router, cases in REFUSED.items() for case in cases],
    ids=lambda value: str(value)[:40],
)
def test_options_that_contradict_each_other_are_refused(router: str, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(SIX, build_router(router, options))
