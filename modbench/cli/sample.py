"""The command `modbench sample`."""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from modbench.cli.options import Run, Several, Trained, flat
from modbench.errors import UserError, printable, several


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Number of generated tokens and the sampling; see `modbench.model.generate.generate`."""

    tokens: int = 100  #: new tokens per prompt
    temperature: float = 0.0  #: 0: always the most likely token
    seed: int = 0  #: of the draws; without effect at temperature 0


def sample_run(run: str, prompts: Sequence[str], common: Trained, drawing: Drawing) -> list[str]:
    """Return each of ``prompts`` with the text that the model of ``run`` generates after it; for ``run``
    see `modbench.trained.load.load_trained`. Speed and cache size are printed on standard error. Raises
    UserError: the run can't be loaded, a prompt is not text, or ``drawing`` has a field out of range."""
    from modbench.model.generate import check_sampling, dense_cache_bytes, generate

    if drawing.tokens < 1:
        raise UserError(f"tokens is {drawing.tokens}; it must be 1 or more")
    check_sampling(drawing.temperature, drawing.seed)
    for prompt in prompts:
        if not prompt or any("\ud800" <= char <= "\udfff" for char in prompt):
            raise UserError(f"prompt {prompt!a} is empty or not UTF-8; give a character or more of text")
    import torch

    from modbench.model.kv_cache import Cache
    from modbench.routing.plugin_fault import authors_code
    from modbench.trained.load import load_trained

    loaded = load_trained(run, common.plugins, results=common.results)
    model = loaded.model
    tokenizer = loaded.tokenizer
    positions = loaded.sequence
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    longest = max(map(len, ids), default=0) + drawing.tokens
    if longest > positions:
        words = f"modbench: positions from {positions} to {longest} were never trained"
        print(words, file=sys.stderr)
    cache = Cache(len(ids))
    torch.set_num_threads(1)
    started = time.perf_counter()
    router = getattr(model, "router", None)  # none of a model of transformers
    with authors_code(router, "generation") if router else nullcontext():
        new = generate(
            model,
            ids,
            new=drawing.tokens,
            temperature=drawing.temperature,
            seed=drawing.seed,
            cache=cache,
        )
    seconds = time.perf_counter() - started
    dense = dense_cache_bytes(model, sum(cache.read))
    print(
        f"modbench: {several(sum(map(len, new)), 'token')} in {seconds:.2f} s with a cache of "
        f"{several(cache.bytes, 'byte', ',')} ({dense:,} in a dense model of its shape)",
        file=sys.stderr,
    )
    return [prompt + tokenizer.decode(tokens) for prompt, tokens in zip(prompts, new, strict=True)]


def sample(
    run: Run,
    /,
    *,
    prompt: Annotated[Several[str], arg(metavar="TEXT ...", help_behavior_hint="(required)")] = (),
    drawing: OmitArgPrefixes[Drawing],
    common: OmitArgPrefixes[Trained],
) -> int:
    """Print how the model of a trained run continues a prompt.

    Example: modbench sample quick/mod --prompt "In the beginning" --temperature 0.8

    Args:
        run: a trained run, SUITE/LABEL@BUDGET#SEED such as quick/mod@1e12#0 (parts after the
            label may be left out; of several seeds the first is taken); or a folder of weights
        prompt: texts to continue
        drawing: how tokens are sampled
        common: folder of trained runs, and their plugins
    """
    prompts = flat(prompt)
    if not prompts:
        raise UserError("sample needs --prompt, such as --prompt 'In the beginning'")
    for text in sample_run(run, prompts, common, drawing):
        print(printable(text))
    return 0
