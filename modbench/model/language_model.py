"""LanguageModel: what training, timing, the audit, evaluation and memory use of a model.

B sequences, T tokens, D model width, V vocabulary, R requested rows.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from modbench.ledger import Counts, Ledger, Workload
from modbench.model.context import Context
from modbench.model.shape import Shape


class LanguageModel(nn.Module, ABC):
    """A causal language model whose FLOPs are known. It is a module of PyTorch; parameters, modes and
    devices are those of `torch.nn.Module`. A KV cache is a `modbench.model.kv_cache.Cache`, which the
    context of a pass carries."""

    config: Shape
    #: The token embedding, whose weight has no weight decay.
    embedding: nn.Embedding
    #: The blocks, from the first to the last.
    layers: nn.ModuleList

    @property
    @abstractmethod
    def scheme(self) -> str:
        """Name of the router, or of what takes its place, as records and weights state it."""

    @property
    @abstractmethod
    def flops_source(self) -> Literal["closed form", "counted"]:
        """Source of FLOPs: closed forms alone, or with parts counted on the meta device."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """Return logits (B, T, V), or (B, 1, V) if the context asks for those of the last tokens."""

    @abstractmethod
    def hidden(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """Return the input of the head, (B, T, D), or (B, 1, D)."""

    @abstractmethod
    def logits_at(self, tokens_BT: Tensor, context: Context, rows_R: Tensor, places_R: Tensor) -> Tensor:
        """Return the logits (R, V) of `forward` at ``rows_R`` and ``places_R`` alone."""

    @abstractmethod
    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, context: Context) -> Tensor:
        """Return the mean cross-entropy of ``targets_BT`` in nats, without auxiliary losses, which are
        in the trace of the context."""

    @abstractmethod
    @torch.no_grad()
    def losses(self, tokens_BT: Tensor, targets_BT: Tensor, context: Context) -> Tensor:
        """Return the cross-entropy of each token in nats, (B, T), in float32 or wider, no gradient."""

    @abstractmethod
    def ledger(self, workload: Workload) -> Ledger:
        """Return the FLOPs of `forward` for ``workload``, and of its backward pass where needed."""

    def loss_ledger(self, workload: Workload) -> Ledger:
        """Return the FLOPs of `loss` and its backward pass."""
        return self.ledger(workload)

    def nominal_counts(self, workload: Workload) -> Counts:
        """Return the routed counts that the training rule keeps to; empty if nothing is routed."""
        return {}

    def expected_counts(self, workload: Workload) -> Counts:
        """Return the routed counts that `ledger` assumes for a workload without counts."""
        return {}

    @abstractmethod
    def parameter_count(self, kind: Literal["total", "active"] = "total") -> int:
        """Return the number of parameters: all, or those that process one token."""

    @abstractmethod
    def kv_bytes_per_token(self) -> int:
        """Return the bytes of keys and values of a token that every layer caches."""
