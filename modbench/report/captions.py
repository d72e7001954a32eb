"""The caption of each figure of a report."""

#: By name, in the order of a page.
CAPTIONS = {
    "difference_to_dense": (
        "Difference to the dense model at each training budget, with 95 % intervals. Filled: "
        "significant after correction for the number of comparisons. A stroke: no verdict. A control, "
        "which selects tokens without looking at them, is hollow in any case."
    ),
    "differences": (
        "Differences of pairs, the first scheme minus the second, with the 95 % interval of each "
        "one. Filled: significant after correction for the number of comparisons in its family. A "
        "stroke: no verdict."
    ),
    "isoflop_curves": (
        "Validation loss against model size, a curve per scheme at equal training FLOPs. A point is the"
        " mean of the seeds of one size, its bar their range; the line is the parabola. A hollow star is"
        " the optimum, its bars the 95 % intervals of size and loss. Hollow points joined by dashes: no"
        " interior optimum. Triangles at the upper edge: points above it."
    ),
    "learning_rates": (
        "Loss of the learning rates tried for each scheme, one seed at the middle size and budget; the"
        " chosen rate is filled."
    ),
    "loss_vs_training_flops": (
        "Validation loss during training against the training FLOPs spent; with several seeds, their "
        "mean at equal FLOPs and a band from the least to the greatest. Dotted: unigram loss. The loss"
        " is taken on fewer tokens than that of the table. Grey, without a name: rows after the first "
        "20 of the table."
    ),
    "loss_vs_forward_flops": (
        "Final validation loss against realised forward FLOPs per token, as in the table: points at the "
        "lower left are better and cheaper. Bars: 95 % t-intervals over seeds."
    ),
    "routing": (
        "Share of validation tokens that each depth-routed layer selects, by position in the sequence, "
        "of the first seed: solid under the causal rule, dotted under the training rule."
    ),
    "expert_load": (
        "Load of each layer's experts on validation text, busiest first, over an even load (1, dotted), "
        "of the first seed. Dashed: no-op experts, ranked among themselves."
    ),
    "routing_saturation": (
        "Share of the decisions at the end that are taken already during training; mean over layers and "
        "seeds, with a band from the least to the greatest seed."
    ),
    "routing_predictors": (
        "How well the position, the token id, the id and the one before, and under the dense model of "
        "equal shape and seed the token's loss and the norm of the layer's change predict each layer's "
        "decisions on passages that the rules were not fitted on; mean over seeds. Dotted: chance."
    ),
    "routing_series": (
        "Numbers that routers record themselves, over training; mean over seeds, with a band from the "
        "least to the greatest."
    ),
    "routing_pattern": (
        "The first tokens of one validation passage that each layer processes under the causal rule, "
        "one run per scheme, layer 0 at the bottom. Blue: selected (darker: larger router weight); "
        "pale: skipped; grey rows: layers that process all tokens. A dot: the training rule "
        "decides otherwise. In layers of experts among which every token chooses, the colour is the "
        "token's first expert. Where experts choose their tokens, a token has no first expert, so such "
        "schemes are not drawn. The page in HTML shows the whole passage."
    ),
}
