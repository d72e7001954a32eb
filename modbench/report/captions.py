"""Figures of a report: file names, and the sentence that a page says of each."""

_LOSS = "Held-out loss against model size, a curve per scheme at equal training FLOPs"
_STAR = "a star is the optimum with its 95 % intervals, and hollow markers are of curves without one"
#: By name, in the order of a page. The section on downstream tasks shows its own figure.
CAPTIONS = {
    "isoflop_curves": f"{_LOSS}; {_STAR}.",
    "loss_at_optimum": "Loss of each scheme at its optimal size against the training budget.",
    "speed_up": "Speed-up over the dense model at equal loss, with 95 % intervals; 1 is no speed-up.",
    "normalised_loss": (
        "Loss and forward FLOPs per token, both over those of the dense optimum of the same budget: "
        "points at the lower left are better and cheaper than it."
    ),
    "learning_rates": "Loss of the learning rates tried for each scheme; the chosen one is filled.",
    "isoflop_curves_parameters": f"{_LOSS}: all parameters in place of active ones.",
    "isoflop_curves_forward_flops": f"{_LOSS}: forward FLOPs per token in place of parameters.",
    "loss_vs_training_flops": (
        "Held-out loss during training against the training FLOPs spent. It is taken on fewer tokens "
        "than the loss of the table."
    ),
    "loss_vs_forward_flops": (
        "Final held-out loss against nominal forward FLOPs per token: points at the lower left are "
        "better and cheaper."
    ),
    "routing": (
        "Share of held-out tokens that each depth-routed layer selects, by position in the sequence, "
        "under the causal rule and under the training rule."
    ),
    "expert_load": (
        "Load of each layer's experts on held-out text, busiest first, over an even load (1, dotted)."
    ),
    "routing_pattern": (
        "Tokens of one held-out passage that each layer processes under the causal rule, one run per "
        "scheme; in layers of experts among which every token chooses, the token's first expert."
    ),
    "router_weights": (
        "Router weights of all held-out tokens in depth-routed layers: tokens that are selected, and "
        "the others."
    ),
    "realised_efficiency": (
        "Speed-up over the dense model that is achieved, over the one that FLOPs let expect (1, dotted)."
    ),
}
