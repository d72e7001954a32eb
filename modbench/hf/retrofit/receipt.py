"""The receipt of a retrofit: with all tokens selected and gates of 1, the logits are the original's.

B sequences, T tokens, V vocabulary.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from modbench.errors import UserError
from modbench.hf.retrofit.build import everything_selected

#: Sequences and tokens of the comparison: more than a batch of one, and few enough for a large model.
_SHAPE = (2, 64)


@torch.no_grad()
def receipt(original: Any, retrofitted: Any, tokens_BT: Tensor | None = None) -> dict[str, Any]:
    """Return the largest difference of a logit between ``original`` and ``retrofitted`` with all tokens
    selected and gates of 1, and keep it in the config of ``retrofitted``, which is saved with it.

    ``tokens_BT``: token ids; None: random ones. Raise a `UserError` if ``retrofitted`` is not."""
    import transformers

    if not getattr(retrofitted.config, "modbench", None):
        raise UserError(
            f"{type(retrofitted).__name__} is not retrofitted; give the model that modbench.retrofit "
            "or modbench.upcycle returned"
        )
    device = next(retrofitted.parameters()).device
    if tokens_BT is None:
        generator = torch.Generator().manual_seed(0)
        tokens_BT = torch.randint(original.config.vocab_size, _SHAPE, generator=generator)
    logits = []
    for model in (original, retrofitted):
        training = model.training
        model.eval()
        try:
            with everything_selected(model):
                logits.append(model(tokens_BT.to(next(model.parameters()).device)).logits.to(device))
        finally:
            model.train(training)
    written = {
        "largest_logit_difference": (logits[0].float() - logits[1].float()).abs().max().item(),
        "largest_logit": logits[0].abs().max().item(),
        "tokens": tokens_BT.numel(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    retrofitted.config.modbench = {**copy.deepcopy(retrofitted.config.modbench), "receipt": written}
    return written
