"""Prefill and decoding of every scheme and preset on a GPU, by fake CUDA tensors: kernels, where the
host waits, and compiled programs.

B sequences, T tokens.
"""

from typing import Any

import pytest
from no_card import why_not

if reason := why_not():
    pytest.skip(reason, allow_module_level=True)

import torch
import torch._dynamo as dynamo
from fake_cuda import SCHEMES, Watch, built, fake_cuda, on_cuda, tokens

from modbench.model.context import Context, Logits
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel

# torch.compile's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SEQUENCES, PROMPT, STEPS = 2, 64, 2
FLASH, EFFICIENT = "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"
#: Routers that select by thresholds: where the host waits, in prefill and for each token, in every
#: routed layer. In all others it waits nowhere.
EXPERTS = {"counts_to_host in RoutedExperts._assign", "nonzero_indices in dispatched"}
DEPTH = {"counts_to_host in DepthRouted._by_threshold", "copy to cuda in Cache.extend"}
RECURSIONS = {"counts_to_host in Recursions._gathered", "copy to cuda in Cache.extend"}
PADDING = {"copy to cuda in host_lengths", "nonzero_indices in GatheredTokens._selected_only"}
GROUPS = {"copy to cuda in GatheredTokens._slots"}  # one by one, so that no slot is padded
PREFILL = {
    "expert_choice": EXPERTS,
    "expert_threshold": EXPERTS,
    "relu_routing": EXPERTS,
    "mod": DEPTH | PADDING,
    "mode_staged": DEPTH | PADDING | {"nonzero_indices in RoutedExperts.forward"},
    "threshold_skip": DEPTH | GROUPS,
    "mixture_of_recursions": RECURSIONS | GROUPS,
}
#: Sequences that cached another number of tokens are masked, and flash attention takes no mask.
MASKED = {"copy to cuda in _mask"}
DECODE = {
    "expert_choice": EXPERTS,
    "expert_threshold": EXPERTS,
    "relu_routing": EXPERTS,
    "mod": DEPTH | MASKED,
    "mode_staged": DEPTH | MASKED,
    "threshold_skip": DEPTH | MASKED,
    "mixture_of_recursions": RECURSIONS | MASKED,
}
#: Further waits of presets, in each pass: a selection that the host computes, and experts that choose.
ALSO = {"mod:stride": {"copy to cuda in _strided"}, "mode_staged:expert_choice": EXPERTS}
#: Routers with experts whose counts stay on the device, unless the experts choose.
GROUPED = {"mode_integrated", "mode_staged", "token_choice"}
#: Routers whose passes are one program: experts that tokens choose, or none.
STATIC = ("mode_integrated", "token_choice", "vanilla")


def served(
    model: LanguageModel, watch: Watch, run: Any = lambda function: function
) -> tuple[Watch, Watch]:
    """Read a prompt of each sequence, then decode token by token; return what each of them did."""
    on_cuda(model.eval())
    forward = run(model.forward)
    cache = Cache(SEQUENCES)

    def read(length: int, logits: Logits) -> None:
        context = Context(selection="causal", cache=cache, logits=logits)
        found = forward(tokens(SEQUENCES, length, model.config.vocabulary), context)
        assert found.shape == (SEQUENCES, 1, model.config.vocabulary)
        assert (found.device.type, found.dtype) == ("cuda", torch.bfloat16)

    with torch.no_grad():
        read(PROMPT, "last")
        prefill = watch.taken()
        for _ in range(STEPS):
            read(1, "all")
    return prefill, watch.taken()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_host_waits_only_where_stated(scheme: str) -> None:
    router = scheme.partition(":")[0]
    model = built(scheme, torch.bfloat16)
    with fake_cuda(uneven=True) as watch:
        prefill, decode = served(model, watch)
    also = ALSO.get(scheme, set())
    assert set(prefill.waits) == PREFILL.get(router, set()) | also
    assert set(decode.waits) == DECODE.get(router, set()) | also
    assert prefill.reads <= model.config.layers
    assert decode.reads <= STEPS * prefill.reads
    attention = [{name for name in each.ops if "attention" in name} for each in (prefill, decode)]
    assert attention[0] == {FLASH}
    assert attention[1] - {FLASH} == ({EFFICIENT} if set(decode.waits) >= MASKED else set())
    for each in (prefill, decode):
        assert ("_grouped_mm" in each.ops) == (router in GROUPED and EXPERTS.isdisjoint(each.waits))


@pytest.mark.parametrize("router", STATIC)
def test_a_pass_of_static_shapes_is_one_program(router: str) -> None:
    dynamo.reset()
    dynamo.utils.counters.clear()

    def whole(function: Any) -> Any:
        return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)

    model = built(router, torch.bfloat16)
    with fake_cuda() as watch:
        prefill, decode = served(model, watch, whole)
    for each in (prefill, decode):
        assert not each.waits
        assert {name for name in each.ops if "attention" in name} == {FLASH}
    # A program of the prompt, and one of each length of the cache.
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1 + STEPS
