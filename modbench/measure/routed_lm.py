"""Adapter of our models to lm-eval; every token is scored under the causal selection rule.

B sequences, T tokens, V vocabulary, R requested rows of logits.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError
from modbench.model.context import Context

#: Inputs of the model, and the targets that its last ``len(targets)`` logits predict.
Window = tuple[tuple[int, ...], tuple[int, ...]]


class RoutedLM(TemplateLM):
    """A language model called as ``model(tokens_BT, context) -> logits_BTV``, under the causal rule.

    Sequences are padded on the right, with their lengths in the context. A batch holds at most ``batch
    * sequence`` tokens, padding included. Longer texts are truncated on the left by `loglikelihood`
    (the continuation is scored in full), and scored in rolling windows by `loglikelihood_rolling`.
    Tasks that generate text raise UserError.

    Args:
        sequence: largest input length, the model's training length.
        batch: full-length sequences per forward pass.
        autocast: context manager of each forward pass, such as ``torch.autocast("cuda",
            torch.bfloat16)``. Log-softmax is always float32.

    Raises:
        UserError: ``sequence`` or ``batch`` is below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        sequence: int = 256,
        batch: int = 32,
        autocast: AbstractContextManager[Any] | None = None,
    ) -> None:
        super().__init__()
        if sequence < 1 or batch < 1:
            raise UserError(f"sequence is {sequence} and batch {batch}; both must be 1 or more")
        self.model = model
        self.tokenizer: Any = tokenizer
        self.sequence = sequence
        self.batch = batch
        self.autocast = autocast or nullcontext()
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.end_of_text

    @property
    def max_length(self) -> int:
        return self.sequence

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.tokenizer.encode(string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation): ln p(continuation | context), and True if greedy decoding
        gives the continuation. An empty context is one end-of-text token."""
        pairs = [(request.args, *self._encode_pair(*request.args)) for request in requests]
        return self._loglikelihood_tokens(pairs)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the context and of the continuation, as in the tokenized whole.

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
        windows: list[Window] = []
        owners: list[int] = []
        for number, (_text, context, continuation) in enumerate(requests):
            # A continuation longer than the window is split, each part with the context that fits.
            for start in range(0, len(continuation), self.sequence):
                targets = continuation[start : start + self.sequence]
                inputs = (context + continuation[: start + len(targets)])[-self.sequence - 1 : -1]
                windows.append((tuple(inputs), tuple(targets)))
                owners.append(number)
        return self._gathered(windows, owners, len(requests))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """For each text: ln p(text | end of text), each token predicted once, in windows of
        ``sequence`` tokens."""
        windows: list[Window] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            pieces = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.sequence,
                context_len=1,
            )
            for context, targets in map(make_disjoint_window, pieces):
                windows.append((tuple(context + targets[:-1]), tuple(targets)))
                owners.append(number)
        return [total for total, _ in self._gathered(windows, owners, len(requests))]

    def _gathered(
        self, windows: Sequence[Window], owners: Sequence[int], requests: int
    ) -> list[tuple[float, bool]]:
        """Sum the scores of windows by request; 0.0 and True for a request without windows."""
        totals, greedy = [0.0] * requests, [True] * requests
        for owner, (total, is_greedy) in zip(owners, self._scores(windows), strict=True):
            totals[owner] += total
            greedy[owner] &= is_greedy
        return list(zip(totals, greedy, strict=True))

    def _scores(self, windows: Sequence[Window]) -> list[tuple[float, bool]]:
        """For each window: the log-probability of its targets, and True if each is the most likely.

        Windows with equal inputs share a forward pass, such as one-token choices of one context.
        """
        requesters: dict[tuple[int, ...], list[int]] = {}
        for number, (inputs, _) in enumerate(windows):
            requesters.setdefault(inputs, []).append(number)
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(windows)
        # Sorted by content, too, so that batches do not depend on the order of requests.
        for batch in self._batches(sorted(requesters, key=lambda inputs: (-len(inputs), inputs))):
            asked = [(row, number) for row, inputs in enumerate(batch) for number in requesters[inputs]]
            values_R, likeliest_R = self._predictions(
                batch, [(row, windows[number][1]) for row, number in asked]
            )
            start = 0
            for _, number in asked:
                end = start + len(windows[number][1])
                scores[number] = (sum(values_R[start:end]), all(likeliest_R[start:end]))
                start = end
        return scores

    def _batches(self, inputs: Iterable[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Split ``inputs``, the longest first, into batches of limited size with padding."""
        batch: list[tuple[int, ...]] = []
        for sequence in inputs:
            if batch and (len(batch) + 1) * len(batch[0]) > self.batch * self.sequence:
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch

    def _predictions(
        self, batch: list[tuple[int, ...]], asked: list[tuple[int, tuple[int, ...]]]
    ) -> tuple[list[float], list[bool]]:
        """For each (sequence of the batch, targets at its end), one row per target: its
        log-probability, and True if it is the most likely token."""
        rows: list[int] = []
        places: list[int] = []
        targets: list[int] = []
        for row, wanted in asked:
            rows += [row] * len(wanted)
            places += range(len(batch[row]) - len(wanted), len(batch[row]))
            targets += wanted
        with torch.no_grad():
            logits_RV = self._logits(batch)[rows, places].float()
            targets_R = torch.tensor(targets, device=logits_RV.device)
            values_R1 = logits_RV.log_softmax(-1).gather(1, targets_R[:, None])
            likeliest_R = logits_RV.argmax(-1) == targets_R
        return values_R1[:, 0].double().tolist(), likeliest_R.tolist()

    def _logits(self, batch: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, T, V) under the causal rule, T the longest length; undefined in padding."""
        lengths_B = torch.tensor([len(tokens) for tokens in batch], device=self._device)
        longest = max(map(len, batch))
        padded = [[*tokens, *[self.eot_token_id] * (longest - len(tokens))] for tokens in batch]
        tokens_BT = torch.tensor(padded, device=self._device)
        ragged = any(len(tokens) < longest for tokens in batch)
        context = Context(selection="causal", lengths_B=lengths_B if ragged else None)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.autocast:
                return self.model(tokens_BT, context)
        finally:
            self.model.train(training)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        raise UserError("tasks that generate text are not supported; choose one scored by likelihood")
