"""The attention of models of transformers: their own, by SDPA, without the masks that they make.

A mask costs more than it masks: without one PyTorch takes a fused causal kernel, which transformers does
not reach under torch.compile, and to find packed sequences it reads positions from the device in each
pass. Rows of a suite have no packed sequences; `modbench.hf.model` gives a mask where one is needed."""

from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

#: Its name in transformers.
WITHOUT_MASKS = "modbench_sdpa"


def attention_without_masks() -> str:
    """Register the attention with transformers, once, and return its name."""
    AttentionInterface.register(WITHOUT_MASKS, sdpa_attention_forward)  # no mask function of that name
    return WITHOUT_MASKS
