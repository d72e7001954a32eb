"""The FLOPs of a model of transformers whose family has no closed form: it is run on the meta device
under the counter, once for each case.

B sequences, T tokens.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from modbench.counting.counter import FlopCounter
from modbench.ledger import Ledger, Workload
from modbench.model.context import Context, host_lengths
from modbench.model.counted import counted_once
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel


def counted_ledger(model: LanguageModel, workload: Workload) -> Ledger:
    """Return the FLOPs of ``model`` for ``workload``. Experts process all that is sent to them, so
    counts of routing play no part."""
    plain = replace(workload, counts={})
    case = (plain.lengths, plain.past, plain.phase, plain.padding, plain.checkpoint)
    return counted_once(model, case, lambda twin: Ledger.sum(_pieces(twin, plain)))


def _pieces(twin: LanguageModel, load: Workload) -> Iterator[Ledger]:
    """Yield the ledgers that add up to that of ``load``: of all sequences in one pass where they are
    alike or padding counts, else of each sequence."""
    if load.phase == "decode" and max(load.lengths) > 1:
        for step in range(max(load.lengths)):
            lengths = tuple(int(n > step) for n in load.lengths)
            past = tuple(p + min(step, each) for p, each in zip(load.past, load.lengths, strict=True))
            yield from _pieces(twin, replace(load, lengths=lengths, past=past))
        return
    rows = Counter(zip(load.lengths, load.past, strict=True))
    if load.padding or len(rows) == 1:
        yield _pass(twin, load)
        return
    for (length, before), times in rows.items():
        if length:
            yield _pass(twin, replace(load, lengths=(length,), past=(before,))) * times


def _pass(twin: LanguageModel, load: Workload) -> Ledger:
    train = load.phase == "train"
    cached = any(load.past) or load.phase in ("prefill", "decode")
    cache = Cache(load.sequences) if cached else None
    twin.train(train)
    with torch.set_grad_enabled(train):
        if cache is not None and any(load.past):
            with FlopCounter():
                twin(*_inputs([max(1, tokens) for tokens in load.past], cache, load))
        inputs_BT, context = _inputs(load.lengths, cache, load)
        with FlopCounter() as counter:
            logits_BTV = twin(inputs_BT, context)
            if train:
                F.cross_entropy(logits_BTV.flatten(0, 1).float(), inputs_BT.flatten()).backward()
    return counter.ledger


def _inputs(lengths: Sequence[int], cache: Cache | None, load: Workload) -> tuple[torch.Tensor, Context]:
    tokens_BT = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device="meta")
    return tokens_BT, Context(
        selection="topk" if cache is None else "causal",
        lengths_B=host_lengths(lengths, tokens_BT.device) if min(lengths) < max(lengths) else None,
        cache=cache,
        logits="last" if load.phase == "prefill" else "all",
        checkpoint=load.checkpoint,
    )
