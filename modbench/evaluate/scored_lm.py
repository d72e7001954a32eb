"""Language models of evaluation: what ours and those of transformers have in common."""

import copy
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from modbench.errors import UserError
from modbench.ledger import Counts, Ledger, Workload
from modbench.model.context import Selection

Batch = int | Literal["auto"]
Tokens = tuple[int, ...]
#: Inputs of the model, and the targets that its last ``len(targets)`` logits predict.
Window = tuple[Tokens, Tokens]
#: The number of a request, the log-probability of one or more of its targets, and True if each is the
#: most likely token.
Rating = tuple[int, float, bool]
NON_CAUSAL = "topk (non-causal)"
#: Tokens of a forward pass of batch size "auto", padding and cached ones included: on a CPU, whose
#: caches hold no more, and on other devices.
CPU_TOKENS, AUTO_TOKENS = 2048, 8192
#: The most logits that they have: 256 MiB in float32.
AUTO_LOGITS = 2**26
#: Prompts per batch of batch size "auto" in generation; more take more memory.
AUTO_PROMPTS = 16


@dataclass(kw_only=True)
class Cost:
    """Cost of forward passes.

    ``tokens``: real input tokens, a shared prefix once. FLOPs (convention ``model``) are of these tokens
    and of the logits that were asked for; ``nominal`` follows the options, ``realised`` the routing;
    both stay 0 for a model without a ledger. ``routed`` of ``offered`` pairs of a token and a routed
    layer were processed by that layer. ``seconds`` include the work outside the model.
    """

    tokens: int = 0
    seconds: float = 0.0
    nominal_flops: int = 0
    realised_flops: int = 0
    routed: int = 0
    offered: int = 0

    @property
    def share_routed(self) -> float | None:
        """Share of tokens routed, averaged over routed layers; None for a model without any."""
        return self.routed / self.offered if self.offered else None

    def per_token(self) -> dict[str, float | None]:
        """Tokens, and seconds and FLOPs per token; None for FLOPs that are not known."""
        tokens = max(1, self.tokens)
        return {
            "tokens": self.tokens,
            "seconds_per_token": self.seconds / tokens,
            "nominal_flops_per_token": self.nominal_flops / tokens if self.nominal_flops else None,
            "realised_flops_per_token": self.realised_flops / tokens if self.realised_flops else None,
            "share_routed": self.share_routed,
        }


class ScoredLM(TemplateLM):
    """A language model of lm-eval that counts what scoring costs.

    `loglikelihood` truncates a longer context on the left, as lm-eval does, and counts it in
    ``truncated``; the continuation is scored in full. `loglikelihood_rolling` never truncates: it scores
    longer texts in windows, and the last one is full. Windows with equal inputs count once.

    Args:
        batch: sequences per forward pass; "auto": as many as have `AUTO_TOKENS` tokens,
            on a CPU `CPU_TOKENS`, or the most that have `AUTO_LOGITS` logits.
    """

    model: Any
    tokenizer: Any
    device: Any
    max_length: int
    vocabulary: int  #: number of logits of a token
    #: ``causal``, or ``topk``, the training rule, whose scores look ahead.
    rule: Selection = "causal"
    #: The closed form of FLOPs; None for a family of transformers without one.
    ledger: Callable[[Workload], Ledger] | None

    def __init__(self, *args: Any, batch: Batch, **options: Any) -> None:
        if batch != "auto" and batch < 1:
            raise UserError(f"batch size is {batch}; it must be 1 or more, or auto")
        super().__init__(*args, **options)
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        """Set ``cost`` and ``truncated`` to zero."""
        self.cost = Cost()
        self.truncated = 0

    def with_batch(self, batch: Batch) -> Self:
        """Return a copy with another batch size and a cost of its own."""
        other = copy.copy(self)
        other.batch = batch
        other.reset()
        return other

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes into the ``config`` of its results."""
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "selection_rule": rule_label(self.rule),
        }

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation): ln p(continuation | context), and True if each token of it
        is the most likely one. Raise a `UserError` for an empty continuation."""
        pairs = []
        with self._timed():
            for request in requests:
                context_ids, ids = self._encode_pair(*request.args)
                if not ids:
                    raise UserError(
                        f"item {request.doc_id} of task '{request.task_name}' has an empty "
                        "continuation, which has no probability; fix the item or leave the task out"
                    )
                pairs.append((request.args, context_ids, ids))
            return self._loglikelihood_tokens(pairs)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        self.truncated += sum(
            len(context) + len(ids) - 1 > self.max_length for _text, context, ids in requests
        )
        return self._scores([self._windows(context, targets) for _text, context, targets in requests])

    def _windows(self, context: list[int], continuation: list[int]) -> Iterator[Window]:
        """A longer continuation than the model is split, each part with the context that fits."""
        for start in range(0, len(continuation), self.max_length):
            targets = continuation[start : start + self.max_length]
            inputs = (context + continuation[: start + len(targets)])[-self.max_length - 1 : -1]
            yield tuple(inputs), tuple(targets)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """For each text: ln p(text | end of text), each token predicted once, in windows of
        ``max_length`` tokens."""
        with self._timed():
            totals = self._scores([self._rolling(request.args[0]) for request in requests])
        return [total for total, _ in totals]

    def _rolling(self, text: str) -> Iterator[Window]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        for context, targets in map(make_disjoint_window, windows):
            yield tuple(context + targets[:-1]), tuple(targets)

    def _scores(self, requests: Sequence[Iterable[Window]]) -> list[tuple[float, bool]]:
        """For each request: the log-probability of the targets of all its windows, and True if each is
        the most likely token."""
        windows = [(number, *window) for number, each in enumerate(requests) for window in each]
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        for number, value, likeliest in self._rated(windows):
            totals[number] += value
            greedy[number] &= likeliest
        return list(zip(totals, greedy, strict=True))

    @abstractmethod
    def _rated(self, windows: Sequence[tuple[int, Tokens, Tokens]]) -> Iterable[Rating]:
        """Rate the targets of ``windows``: the number of a request, inputs and targets of each."""

    def _prompts(self, requests: Sequence[Instance]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Yield the tokens of each prompt, and lm-eval's options of its generation. Prompt and new
        tokens fit ``max_length`` together: new tokens are limited to half of it, and a longer prompt is
        truncated on the left and counted in ``truncated``."""
        for request in requests:
            text, asked = request.args
            options: dict[str, Any] = dict(normalize_gen_kwargs(asked))
            options["until"] = [stop for stop in options["until"] if stop]
            options["do_sample"] = bool(options["do_sample"] and options.get("temperature"))
            new = options["max_gen_toks"] = max(1, min(options["max_gen_toks"], self.max_length // 2))
            prompt = self.tok_encode(text) or [self.prefix_token_id]
            self.truncated += len(prompt) + new > self.max_length
            yield prompt[new - self.max_length :], options

    def _batch_of(self, longest: int) -> int:
        """Return the sequences per forward pass if the longest has this length."""
        if self.batch != "auto":
            return self.batch
        tokens = CPU_TOKENS if self.device.type == "cpu" else AUTO_TOKENS
        return max(1, min(tokens, AUTO_LOGITS // self.vocabulary) // longest)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Context in which the model is in evaluation mode and seconds are added to ``cost``."""
        training = self.model.training
        started = time.perf_counter()
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)
            self.cost.seconds += time.perf_counter() - started

    def _count(
        self, lengths: Tokens, rows: int, *, past: Tokens = (), counts: Counts | None = None
    ) -> None:
        """Add to ``cost`` the tokens and FLOPs of a pass with ``lengths`` new tokens after ``past`` ones
        of each sequence, and ``rows`` rows of logits; ``counts``: of routed tokens."""
        self.cost.tokens += sum(lengths)
        if self.ledger is None or not lengths:
            return
        prefill = Workload(lengths=lengths, past=past, phase="prefill")
        # Phase "prefill" has the logits of one token per sequence.
        head = (rows - len(lengths)) * self._head_flops
        nominal = self.ledger(prefill).total() + head
        realised = self.ledger(replace(prefill, counts=counts)).total() + head if counts else nominal
        self.cost.nominal_flops += nominal
        self.cost.realised_flops += realised

    @cached_property
    def _head_flops(self) -> int:
        """FLOPs of one token's logits."""
        assert self.ledger is not None
        both = self.ledger(Workload(lengths=(2,))).total()
        return both - self.ledger(Workload(lengths=(2,), phase="prefill")).total()


def rule_label(rule: str) -> str:
    """Return the name of a selection rule; the training rule is labelled non-causal."""
    return rule if rule == "causal" else NON_CAUSAL
