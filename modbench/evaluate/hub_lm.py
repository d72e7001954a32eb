"""Causal language models of transformers in lm-eval's own adapter for them.

B sequences, T tokens, V vocabulary.
"""

import inspect
import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from torch import Tensor

from modbench.errors import UserError
from modbench.evaluate.scored_lm import AUTO_PROMPTS, Batch, Rating, ScoredLM, Tokens
from modbench.hf.families import family_ledger, load_config, stated_length
from modbench.hf.folder import load_folder, load_tokenizer
from modbench.hf.passes import installed
from modbench.ledger import Ledger, Workload
from modbench.model.shape import refuse_hub_code

try:
    installed()
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise UserError(
        f"a Hugging Face model needs {error.name or error}; in the clone of modbench, run "
        "`python -m pip install '.[hf]'`"
    ) from error

#: Input length of a model whose config and tokenizer state none, as in lm-eval.
UNSTATED_LENGTH = 2048


class HubLM(ScoredLM, HFLM):
    """lm-eval's own ``hf`` model, on a model and tokenizer that are loaded, with scores in float32 or
    wider."""

    batch_size_per_gpu: Any

    def __init__(self, model: Any, tokenizer: Any, *, batch: Batch = "auto") -> None:
        # It warns of each truncated request, which is counted, and of a model that is loaded already.
        logging.getLogger(HFLM.__module__).setLevel(logging.ERROR)
        length = getattr(tokenizer, "model_max_length", 10**9)
        stated = stated_length(model.config.to_dict())
        super().__init__(
            model,
            tokenizer=tokenizer,
            batch=batch,
            max_length=stated or (int(length) if length < 10**9 else UNSTATED_LENGTH),
            softmax_dtype=torch.promote_types(model.dtype, torch.float32),
        )
        self.ledger = _closed_form(model.config.to_dict())
        self.vocabulary = len(tokenizer)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._end = self._size = self._first = 0

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context.strip():
            return HFLM._encode_pair(self, context, continuation)  # type: ignore[no-any-return]
        ids = self.tok_encode(context + continuation, add_special_tokens=False)
        if ids[:1] == [self.prefix_token_id]:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    def _rated(self, windows: Sequence[tuple[int, Tokens, Tokens]]) -> Iterator[Rating]:
        rows: dict[Tokens, set[int]] = defaultdict(set)
        for _, inputs, targets in windows:
            rows[inputs].add(len(targets))
        self._count(tuple(map(len, rows)), sum(len(targets) for *_, targets in windows))
        # It confuses rows of logits if equal inputs are asked for different numbers of tokens.
        self.logits_cache = all(len(each) == 1 for each in rows.values())
        self.batch_size_per_gpu = "auto"  # as `_batch_scheduler` says
        asked = [
            (None, [*inputs[: len(inputs) - len(targets) + 1]], [*targets])
            for _, inputs, targets in windows
        ]
        scores = HFLM._loglikelihood_tokens(self, asked, disable_tqdm=True)
        for (number, *_), score in zip(windows, scores, strict=True):
            yield number, *score

    def _model_call(self, inps: Tensor, **options: Any) -> Tensor:
        """Return logits (B, T, V), where the model can from the first token that is asked for."""
        if not self._keeps:
            return HFLM._model_call(self, inps, **options)  # type: ignore[no-any-return]
        with torch.no_grad():
            return self.model(inps, logits_to_keep=inps.shape[1] - self._first).logits  # type: ignore[no-any-return]

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence[Any]) -> int:
        """Return the size of the batch that the request at ``pos`` is in, without trial passes."""
        if pos in (0, self._end):
            _, context, targets = n_reordered_requests[pos]
            self._size = self._batch_of(len(context) + len(targets) - 1)
            self._end = pos + self._size
            batch = n_reordered_requests[pos : self._end]
            self._first = min(len(context) for _, context, _ in batch) - 1
        return self._size

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """As lm-eval; new tokens are limited to half of the model's length."""
        devices = [self.device] if self.device.type == "cuda" else []
        self.model.generation_config.max_new_tokens = None  # which would outlast lm-eval's max_length
        self.batch_size_per_gpu = AUTO_PROMPTS if self.batch == "auto" else self.batch
        with self._timed(), torch.random.fork_rng(devices):
            torch.manual_seed(0)  # for tasks that draw
            asked = [
                Instance(request.request_type, request.doc, (request.args[0], options), 0)
                for request, (_, options) in zip(requests, self._prompts(requests), strict=True)
            ]
            return HFLM.generate_until(self, asked, disable_tqdm=True)  # type: ignore[no-any-return]

    def tok_batch_encode(self, strings: Sequence[str], **options: Any) -> tuple[Tensor, Tensor]:
        """As lm-eval; a text without tokens is one end of text."""
        ids_BT, real_BT = HFLM.tok_batch_encode(self, strings, **options)
        if not ids_BT.shape[1]:
            ids_BT, real_BT = torch.zeros(2, len(strings), 1, dtype=torch.int64)
        empty_B = real_BT.sum(1) == 0
        ids_BT[empty_B, -1] = self.prefix_token_id
        real_BT[empty_B, -1] = 1
        return ids_BT, real_BT

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **options: Any
    ) -> Tensor:
        """Generate, and count prompts and new tokens, of each text up to its first stop string."""
        ids_BT = HFLM._model_generate(self, context, max_length, stop, **options)
        prompts = options["attention_mask"].sum(1).tolist()
        self._count(tuple(prompts), len(prompts))
        eos = self.model.generation_config.eos_token_id
        ends = set(eos if isinstance(eos, list) else [eos])
        read, past = [], []
        for prompt, ids in zip(prompts, ids_BT[:, context.shape[1] :].tolist(), strict=True):

            def ended(tokens: int, ids: list[int] = ids) -> bool:
                text = self.tok_decode(ids[:tokens], skip_special_tokens=False)
                return not ends.isdisjoint(ids[:tokens]) or any(each in text for each in stop)

            # The last token is not read.
            if tokens := bisect_left(range(1, len(ids)), True, key=ended):
                read.append(tokens)
                past.append(prompt)
        self._count(tuple(read), sum(read), past=tuple(past))
        return ids_BT  # type: ignore[no-any-return]


def _closed_form(config: dict[str, Any]) -> Callable[[Workload], Ledger] | None:
    ledger = partial(family_ledger, config)
    try:
        ledger(Workload(lengths=(1,)))
    except UserError:  # of an unknown family, or settings that no closed form covers
        return None
    return ledger


def load_hub_lm(folder: Path, *, batch: Batch = "auto", device: str = "cpu") -> HubLM:
    """Load a model folder of transformers with its tokenizer; no code of the folder is run. Raises
    UserError: transformers is missing, the folder has no weights, no tokenizer, no causal language
    model, a tokenizer of another model, or a file that is truncated or damaged."""
    refuse_hub_code(load_config(folder))
    model, tokenizer = load_folder(folder, dtype="auto"), load_tokenizer(folder)
    known = len(model.get_input_embeddings().weight)  # may be more: embeddings are often padded
    if len(tokenizer) > known:
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer)} ids, but the model only {known}; it is the "
            "tokenizer of another model, give the one that the model was trained with"
        )
    return HubLM(model.to(device).eval(), tokenizer, batch=batch)
