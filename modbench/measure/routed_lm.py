"""Adapter of our models to lm-eval; every token is scored under the causal selection rule.

B sequences, T tokens, V vocabulary, R requested rows of logits.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError
from modbench.model.context import Context

Tokens = tuple[int, ...]
#: Inputs of the model, and the targets that its last ``len(targets)`` logits predict.
Window = tuple[Tokens, Tokens]


class RoutedLM(TemplateLM):
    """A language model called as ``model(tokens_BT, context) -> logits_BTV``, under the causal rule.

    Sequences are padded on the right, with their lengths in the context. A batch holds at most ``batch
    * sequence`` tokens, padding included. Longer texts are truncated on the left by `loglikelihood`
    (the continuation is scored in full), and scored in rolling windows by `loglikelihood_rolling`.
    Tasks that generate text raise UserError. Log-softmax is always float32.

    Args:
        sequence: largest input length, the model's training length.
        batch: full-length sequences per forward pass.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, *, sequence: int = 256, batch: int = 32
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer: Any = tokenizer
        self.sequence, self.batch = sequence, batch
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.end_of_text

    @property
    def max_length(self) -> int:
        return self.sequence

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.tokenizer.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the context and of the continuation, as in the tokenized whole. An empty context is
        one end-of-text token.

        Trailing white space of the context moves to the continuation, as in lm-eval. If a token spans
        the boundary, both parts are tokenized separately, so that the continuation is scored in full.
        """
        head = context.rstrip()
        continuation = context[len(head) :] + continuation
        if not head:
            return [self.prefix_token_id], self.tok_encode(continuation)
        context_ids = self.tok_encode(head)
        whole_ids = self.tok_encode(head + continuation)
        if whole_ids[: len(context_ids)] == context_ids:
            return context_ids, whole_ids[len(context_ids) :]
        return context_ids, self.tok_encode(continuation)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._scores([self._windows(context, targets) for _text, context, targets in requests])

    def _windows(self, context: list[int], continuation: list[int]) -> Iterator[Window]:
        """A continuation longer than ``sequence`` is split, each part with the context that fits."""
        for start in range(0, len(continuation), self.sequence):
            targets = continuation[start : start + self.sequence]
            inputs = (context + continuation[: start + len(targets)])[-self.sequence - 1 : -1]
            yield tuple(inputs), tuple(targets)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """For each text: ln p(text | end of text), each token predicted once, in windows of
        ``sequence`` tokens."""
        return [total for total, _ in self._scores([self._rolling(*one.args) for one in requests])]

    def _rolling(self, text: str) -> Iterator[Window]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.sequence,
            context_len=1,
        )
        for context, targets in map(make_disjoint_window, windows):
            yield tuple(context + targets[:-1]), tuple(targets)

    def _scores(self, requests: Sequence[Iterable[Window]]) -> list[tuple[float, bool]]:
        """For each request: the log-probability of the targets of all its windows, and True if each is
        the most likely token. Windows with equal inputs share a forward pass, such as one-token choices
        of one context."""
        wanted: dict[Tokens, list[tuple[int, Tokens]]] = defaultdict(list)
        for number, windows in enumerate(requests):
            for inputs, targets in windows:
                wanted[inputs].append((number, targets))
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        training = self.model.training
        self.model.eval()
        # Sorted by content, too, so that batches do not depend on the order of requests.
        for batch in self._batches(sorted(wanted, key=lambda inputs: (-len(inputs), inputs))):
            asked = [
                (row, len(inputs) - len(targets) + place, target, number)
                for row, inputs in enumerate(batch)
                for number, targets in wanted[inputs]
                for place, target in enumerate(targets)
            ]
            for (*_, number), value, likeliest in zip(asked, *self._rated(batch, asked), strict=True):
                totals[number] += value
                greedy[number] &= likeliest
        self.model.train(training)
        return list(zip(totals, greedy, strict=True))

    def _batches(self, inputs: Iterable[Tokens]) -> Iterator[list[Tokens]]:
        """Split ``inputs``, the longest first, into batches of limited size with padding."""
        batch: list[Tokens] = []
        for sequence in inputs:
            if batch and (len(batch) + 1) * len(batch[0]) > self.batch * self.sequence:
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch

    @torch.no_grad()
    def _rated(
        self, batch: Sequence[Tokens], asked: Sequence[tuple[int, int, int, int]]
    ) -> tuple[list[float], list[bool]]:
        """The log-probability of each (row, place, target, ...), and True if it is the most likely."""
        rows_R, places_R, targets_R, _ = torch.tensor(asked, device=self._device).unbind(1)
        logits_RV = self._logits(batch)[rows_R, places_R].float()
        values_R1 = logits_RV.log_softmax(-1).gather(1, targets_R[:, None])
        likeliest_R = logits_RV.argmax(-1) == targets_R
        return values_R1[:, 0].double().tolist(), likeliest_R.tolist()

    def _logits(self, batch: Sequence[Tokens]) -> Tensor:
        """Logits (B, T, V) under the causal rule, T the longest length; undefined in padding."""
        lengths = [len(tokens) for tokens in batch]
        longest = max(lengths)
        padded = [[*tokens, *[self.eot_token_id] * (longest - len(tokens))] for tokens in batch]
        lengths_B = None
        if min(lengths) < longest:
            lengths_B = torch.tensor(lengths, device=self._device)
        context = Context(selection="causal", lengths_B=lengths_B)
        return self.model(torch.tensor(padded, device=self._device), context)  # type: ignore[no-any-return]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        raise UserError("tasks that generate text are not supported; choose one scored by likelihood")
