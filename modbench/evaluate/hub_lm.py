"""Adapter of causal language models of transformers to lm-eval, through the same path as our models.

B sequences, T tokens, R requested rows of logits, V vocabulary.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lm_eval.api.model import TemplateLM
from torch import Tensor, nn

from modbench.errors import UserError
from modbench.evaluate.routed_lm import RoutedLM
from modbench.hf.families import family_ledger, load_config, stated_length
from modbench.hf.folder import load_folder, load_tokenizer
from modbench.ledger import Ledger, Workload
from modbench.model.context import Context
from modbench.model.shape import refuse_hub_code

#: Input length of a model whose config and tokenizer state none, as in lm-eval.
UNSTATED_LENGTH = 2048


class HubModel(nn.Module):
    """A model of transformers, called as our decoders are. ``ledger``: its closed form of FLOPs; None
    for a family without one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.ledger = _closed_form(model.config.to_dict())
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """Return logits (B, T, V)."""
        return self._logits(tokens_BT, context)

    def logits_at(self, tokens_BT: Tensor, context: Context, rows_R: Tensor, places_R: Tensor) -> Tensor:
        """Return the logits (R, V) at ``rows_R`` and ``places_R``."""
        if not self._keeps:
            return self._logits(tokens_BT, context)[rows_R, places_R]
        kept, index_R = places_R.unique(return_inverse=True)
        return self._logits(tokens_BT, context, logits_to_keep=kept)[rows_R, index_R]

    def _logits(self, tokens_BT: Tensor, context: Context, **kept: Tensor) -> Tensor:
        mask_BT = torch.ones_like(tokens_BT)
        if context.lengths_B is not None:
            places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
            mask_BT = (places_T < context.lengths_B[:, None]).long()
        out = self.model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False, **kept)
        return out.logits  # type: ignore[no-any-return]


def _closed_form(config: dict[str, Any]) -> Callable[[Workload], Ledger] | None:
    ledger = partial(family_ledger, config)
    try:
        ledger(Workload(lengths=(1,)))
    except UserError:  # of an unknown family, or settings that no closed form covers
        return None
    return ledger


class HubTokenizer:
    """A tokenizer of transformers with the interface of ours."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer
        self.vocabulary = len(tokenizer)
        self.end_of_text: int = tokenizer.eos_token_id

    def encode(self, text: str, **options: bool) -> list[int]:
        return self.inner.encode(text, **options)  # type: ignore[no-any-return]

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids, skip_special_tokens=True)  # type: ignore[no-any-return]


class HubLM(RoutedLM):
    """A causal language model of transformers. Texts become tokens as in lm-eval's own ``hf`` model,
    with the beginning-of-sequence token where the tokenizer adds one."""

    def __init__(self, model: Any, tokenizer: Any, *, batch: int | Literal["auto"] = "auto") -> None:
        length = getattr(tokenizer, "model_max_length", 10**9)
        stated = stated_length(model.config.to_dict())
        sequence = stated or (int(length) if length < 10**9 else UNSTATED_LENGTH)
        super().__init__(HubModel(model), HubTokenizer(tokenizer), sequence=sequence, batch=batch)

    @property
    def prefix_token_id(self) -> int:
        start = self.tokenizer.inner.bos_token_id
        return self.eot_token_id if start is None else start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        start = self.tokenizer.inner.decode(self.prefix_token_id)
        if add_special_tokens is None and string.startswith(start):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **options)  # type: ignore[no-any-return]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            return TemplateLM._encode_pair(self, context, continuation)
        ids = self.tok_encode(continuation, add_special_tokens=False)
        if ids and ids[0] == self.prefix_token_id:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids


def load_hub_lm(folder: Path, *, batch: int | Literal["auto"] = "auto", device: str = "cpu") -> HubLM:
    """Load a model folder of transformers with its tokenizer; no code of the folder is run. Raises
    UserError: transformers is missing, the folder has no weights, no tokenizer, no causal language
    model, a tokenizer of another model, or a file that is truncated or damaged."""
    refuse_hub_code(load_config(folder))
    model, tokenizer = load_folder(folder, dtype="auto"), load_tokenizer(folder)
    check_vocabulary(len(tokenizer), len(model.get_input_embeddings().weight), str(folder))
    return HubLM(model.to(device).eval(), tokenizer, batch=batch)


def check_vocabulary(tokenizer: int, model: int, name: str) -> None:
    """Raise a `UserError` if the tokenizer has ids that the model lacks. A model may have more, since
    embeddings are often padded."""
    if tokenizer > model:
        raise UserError(
            f"{name}: its tokenizer has {tokenizer} ids, but the model only {model}; it is the "
            "tokenizer of another model, give the one that the model was trained with"
        )
