"""The caption of each figure of a report."""

_LOSS = "Held-out loss against model size, a curve per scheme at equal training FLOPs"
_MARKS = (
    "A point is the mean of the seeds of one size, its bar their range; the line is the parabola. A "
    "hollow star is the optimum, its bars the 95 % intervals of size and loss. Hollow points joined by"
    " dashes: no interior optimum. Triangles at the upper edge: points above it."
)
#: By name, in the order of a page. The section on downstream tasks shows its own figure.
CAPTIONS = {
    "isoflop_curves": f"{_LOSS}. {_MARKS}",
    "isoflop_depths": (
        f"{_LOSS}: a panel per depth, a row per budget. {_MARKS} The last panel has the lowest of the "
        "parabolas with an interior optimum, and the best optimum with its number of layers; its "
        "interval is that of a choice among the depths."
    ),
    "loss_at_optimum": (
        "Loss of each scheme at its optimal size against the training budget, with 95 % intervals. "
        "Dotted: the dense model's loss at its optimum by one fit of all budgets (the surface of "
        "Hoffmann et al. 2022)."
    ),
    "speed_up": (
        "Speed-up over the dense model at equal loss; 1 (dotted) is no speed-up. Filled: in training "
        "FLOPs; hollow, if steps were timed: in seconds of them. Lines are 95 % intervals, which don't "
        "contain the spread of the times. An open arrow starts at a bound: the value is at least, or at "
        "most, that. It also stands at a marker if the interval is open on that side."
    ),
    "normalised_loss": (
        "Loss and nominal forward FLOPs per token, both over those of the dense optimum of the same "
        "budget, means of seeds: points in the grey area are better and cheaper than it. Hollow "
        "points: no interior optimum."
    ),
    "learning_rates": (
        "Loss of the learning rates tried for each scheme, one seed at the middle size and budget; the"
        " chosen rate is filled."
    ),
    "loss_vs_training_flops": (
        "Held-out loss during training against the training FLOPs spent; with several seeds, their "
        "mean at equal FLOPs and a band from the least to the greatest. Dotted: unigram loss. The loss"
        " is taken on fewer tokens than that of the table."
    ),
    "loss_vs_forward_flops": (
        "Final held-out loss against realised forward FLOPs per token, as in the table: points at the "
        "lower left are better and cheaper. Bars: 95 % t-intervals over seeds. Of several sizes, "
        "joined by a line, the best is filled."
    ),
    "routing": (
        "Share of held-out tokens that each depth-routed layer selects, by position in the sequence, "
        "of the first seed: solid under the causal rule, dotted under the training rule."
    ),
    "expert_load": (
        "Load of each layer's experts on held-out text, busiest first, over an even load (1, dotted), "
        "of the first seed. Dashed: no-op experts, ranked among themselves."
    ),
    "routing_pattern": (
        "Tokens of one held-out passage that each layer processes under the causal rule, one run per "
        "scheme, layer 0 at the bottom. Blue: selected, pale: skipped, thin grey rows: layers that "
        "process all tokens. A dot: the training rule decides otherwise. In layers of experts among "
        "which every token chooses, the shade is the token's first expert. Where experts choose their "
        "tokens, a token has no first expert, so such schemes are not drawn."
    ),
    "router_weights": (
        "Router weights of all held-out tokens in depth-routed layers under the causal rule: blue are "
        "tokens that are selected, grey the others; the dotted outline are those that the training "
        "rule selects. The axis leaves out 0.5 % of the tokens at either end."
    ),
    "realised_efficiency": (
        "Speed-up over the dense model that is achieved, over the one that FLOPs let expect (1, "
        "dotted). The dense time is that of the same shape, or interpolated between the next two "
        "widths. Filled: stable times; hollow: a time is unstable. A thin stroke: the machine was "
        "loaded or the GPU throttled during a measurement, so it is no result."
    ),
}
