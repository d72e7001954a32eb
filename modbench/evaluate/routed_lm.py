"""Adapter of our models to lm-eval; every token is scored under the causal selection rule, unless the
training rule is asked for.

B sequences, T tokens, V vocabulary, R requested rows of logits.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from modbench.errors import UserError, known_names
from modbench.evaluate.generation import AUTO_PROMPTS, generate_texts, new_tokens
from modbench.evaluate.scoring_passes import Cost, Place, ScoringPasses, Tokens
from modbench.model.context import Selection

#: Inputs of the model, and the targets that its last ``len(targets)`` logits predict.
Window = tuple[Tokens, Tokens]
RULES: tuple[str, ...] = get_args(Selection)
#: Tokens of a forward pass of batch size "auto", padding and cached ones included: on a CPU, whose
#: caches hold no more, and on other devices.
CPU_TOKENS, AUTO_TOKENS = 2048, 8192
#: The most logits that they have: 256 MiB in float32.
AUTO_LOGITS = 2**26
#: Largest difference in nats of a log-probability scored from a cached prefix and in one pass. If more
#: than half of the requests exceed it, the model does not continue from its cache; of a model that does,
#: rounding may flip a routing decision now and then. Weights of half precision round more.
REUSE_TOLERANCE, HALF_TOLERANCE = 1e-3, 0.2


class RoutedLM(TemplateLM):
    """A language model called as ``model(tokens_BT, context) -> logits_BTV``, as lm-eval wants it.

    Sequences are padded on the right, with their lengths in the context. `loglikelihood` truncates a
    longer context on the left, as lm-eval does, and counts it in ``truncated``; the continuation is
    scored in full. `loglikelihood_rolling` never truncates: it scores longer texts in windows, and the
    last one is full. Continuations that share a context, such as the choices of an item, are scored
    from one cached pass over it; the first of them are scored before with and without the cache, which
    `cost` leaves out, and if that differs the cache is not used (``reuses`` becomes False).
    Log-softmax is in float32 or wider.

    Args:
        tokenizer: has ``encode(text) -> ids``, ``decode(ids) -> text`` and ``end_of_text``.
        sequence: largest input length, the model's training length.
        batch: sequences per forward pass; "auto": as many as have `AUTO_TOKENS` tokens,
            on a CPU `CPU_TOKENS`, or the most that have `AUTO_LOGITS` logits.
        rule: ``causal``, or ``topk``: the training rule, which looks ahead, so that scores are not those
            of a language model.
        reuse: score continuations that share a context from one pass over it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        sequence: int = 256,
        batch: int | Literal["auto"] = "auto",
        rule: Selection = "causal",
        reuse: bool = True,
    ) -> None:
        super().__init__()
        if batch != "auto" and batch < 1:
            raise UserError(f"batch size is {batch}; it must be 1 or more, or auto")
        if rule not in RULES:
            raise UserError(f"rule '{rule}' is not known; {known_names(rule, RULES)}")
        self.model = model
        self.tokenizer: Any = tokenizer
        self.sequence, self.batch = sequence, batch
        self.passes = ScoringPasses(model, rule=rule, padding=tokenizer.end_of_text)
        self.reuses = reuse and self.passes.has_cache
        self.truncated = 0
        self._compared = False

    @property
    def rule(self) -> Selection:
        return self.passes.rule

    @property
    def cost(self) -> Cost:
        """Cost of all requests since `reset`."""
        return self.passes.cost

    def reset(self) -> None:
        """Set `cost` and ``truncated`` to zero."""
        self.passes.cost = Cost()
        self.truncated = 0

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.end_of_text  # type: ignore[no-any-return]

    @property
    def max_length(self) -> int:
        return self.sequence

    @property
    def batch_size(self) -> int | str:
        return self.batch

    @property
    def device(self) -> Any:
        return self.passes.device

    @property
    def tokenizer_name(self) -> str:
        return type(self.tokenizer).__name__

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes into the ``config`` of its results."""
        causal = self.rule == "causal"
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "selection_rule": self.rule if causal else f"{self.rule} (non-causal)",
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.tokenizer.encode(string)  # type: ignore[no-any-return]

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

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation): ln p(continuation | context), and True if each token of it
        is the most likely one. Raise a `UserError` for an empty continuation."""
        pairs = []
        with self.passes.timed():
            for request in requests:
                context, continuation = request.args
                context_ids, ids = self._encode_pair(context, continuation)
                if not ids:
                    raise UserError(
                        f"item {request.doc_id} of task '{request.task_name}' has an empty "
                        "continuation, which has no probability; fix the item or leave the task out"
                    )
                pairs.append(((context, continuation), context_ids, ids))
        return self._loglikelihood_tokens(pairs)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        self.truncated += sum(
            len(context) + len(ids) - 1 > self.sequence for _text, context, ids in requests
        )
        return self._scores([self._windows(context, targets) for _text, context, targets in requests])

    def _windows(self, context: list[int], continuation: list[int]) -> Iterator[Window]:
        """A continuation longer than ``sequence`` is split, each part with the context that fits."""
        for start in range(0, len(continuation), self.sequence):
            targets = continuation[start : start + self.sequence]
            inputs = (context + continuation[: start + len(targets)])[-self.sequence - 1 : -1]
            yield tuple(inputs), tuple(targets)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """For each text: ln p(text | end of text), each token predicted once, in windows of ``sequence``
        tokens."""
        totals = self._scores([self._rolling(request.args[0]) for request in requests])
        return [total for total, _ in totals]

    def _rolling(self, text: str) -> Iterator[Window]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.sequence,
            context_len=1,
        )
        for context, targets in map(make_disjoint_window, windows):
            yield tuple(context + targets[:-1]), tuple(targets)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """For each (context, options): the text that the model continues with, see `generate_texts`.
        Context and new tokens fit ``sequence`` together: new tokens are limited to half of it, and a
        longer context is truncated on the left and counted in ``truncated``."""
        options = [request.args[1] for request in requests]
        new = [new_tokens(asked, self.sequence) for asked in options]
        with self.passes.timed():
            prompts = [self.tok_encode(asked.args[0]) or [self.prefix_token_id] for asked in requests]
            self.truncated += sum(
                len(prompt) + most > self.sequence for prompt, most in zip(prompts, new, strict=True)
            )
            prompts = [prompt[most - self.sequence :] for prompt, most in zip(prompts, new, strict=True)]
            size = AUTO_PROMPTS if self.batch == "auto" else self.batch
            return generate_texts(self.passes, self.tokenizer, prompts, options, new=new, batch=size)

    def _scores(self, requests: Sequence[Iterable[Window]]) -> list[tuple[float, bool]]:
        """For each request: the log-probability of the targets of all its windows, and True if each is
        the most likely token. Windows with equal inputs share a forward pass, such as one-token choices
        of one context."""
        wanted: dict[Tokens, list[tuple[int, Tokens]]] = defaultdict(list)
        for number, windows in enumerate(requests):
            for inputs, targets in windows:
                wanted[inputs].append((number, targets))
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        with self.passes.timed():
            for number, value, likeliest in self._rated(wanted):
                totals[number] += value
                greedy[number] &= likeliest
        return list(zip(totals, greedy, strict=True))

    def _rated(
        self, wanted: dict[Tokens, list[tuple[int, Tokens]]]
    ) -> Iterator[tuple[int, float, bool]]:
        """For each target of ``wanted``: the number of its request, its log-probability, and True if it
        is the most likely token."""
        groups: dict[Tokens, list[Tokens]] = defaultdict(list)
        for inputs, asked in wanted.items():
            longest = max(len(targets) for _, targets in asked)
            groups[inputs[: len(inputs) - longest + 1]].append(inputs)
        alone = [inputs for members in groups.values() if len(members) == 1 for inputs in members]
        shared = {prefix: members for prefix, members in groups.items() if len(members) > 1}
        if self.reuses and shared and not self._compared:
            self._compared = True
            with self.passes.uncounted():
                self.reuses = self._continues(shared, wanted)
        if not self.reuses:
            alone = list(wanted)
            shared = {}
        for batch in self._batches(shared):
            yield from self._from_cache({prefix: shared[prefix] for prefix in batch}, wanted)
        for batch in self._batches(alone):
            yield from self._in_one_pass(batch, wanted)

    def _continues(
        self, shared: dict[Tokens, list[Tokens]], wanted: dict[Tokens, list[tuple[int, Tokens]]]
    ) -> bool:
        """Return True if the model continues from its cache: the first batch of ``shared`` gets the same
        scores with and without it."""
        first = next(self._batches(shared))
        cached = list(self._from_cache({prefix: shared[prefix] for prefix in first}, wanted))
        members = [inputs for prefix in first for inputs in shared[prefix]]
        again = [rating for part in self._batches(members) for rating in self._in_one_pass(part, wanted)]
        return self._agree(cached, again)

    def _agree(
        self, cached: list[tuple[int, float, bool]], again: list[tuple[int, float, bool]]
    ) -> bool:
        """Return True if two scorings of the same targets give most requests the same total."""
        totals: dict[int, float] = defaultdict(float)
        for sign, rated in ((1, cached), (-1, again)):
            for number, value, _ in rated:
                totals[number] += sign * value
        half = any(parameter.element_size() < 4 for parameter in self.model.parameters())
        tolerance = HALF_TOLERANCE if half else REUSE_TOLERANCE
        return sum(abs(off) > tolerance for off in totals.values()) <= len(totals) / 2

    def _in_one_pass(
        self, batch: Sequence[Tokens], wanted: dict[Tokens, list[tuple[int, Tokens]]]
    ) -> Iterator[tuple[int, float, bool]]:
        asked = [
            ((row, len(inputs) - len(targets) + offset), target, number)
            for row, inputs in enumerate(batch)
            for number, targets in wanted[inputs]
            for offset, target in enumerate(targets)
        ]
        yield from _answers(self.passes.whole(batch, [position for position, *_ in asked]), asked)

    def _from_cache(
        self, groups: dict[Tokens, list[Tokens]], wanted: dict[Tokens, list[tuple[int, Tokens]]]
    ) -> Iterator[tuple[int, float, bool]]:
        """Score ``groups``, prefix -> inputs that begin with it: each prefix is read once."""
        logits_BV, cache = self.passes.prefill(list(groups))
        first, rest = [], []
        for row, (prefix, members) in enumerate(groups.items()):
            for inputs in members:
                for number, targets in wanted[inputs]:
                    start = len(inputs) - len(targets) - len(prefix) + 1
                    if start == 0:
                        first.append(((row, 0), targets[0], number))
                if len(inputs) > len(prefix):
                    rest.append((row, inputs[len(prefix) :], inputs))
        if first:
            rows = [position[0] for position, *_ in first]
            yield from _answers(logits_BV[rows], first)
        suffixes = sorted(rest, key=lambda suffix: (-len(suffix[1]), suffix[0], suffix[1]))
        for batch in self._split([suffix for _, suffix, _ in suffixes], past=max(map(len, groups))):
            part, suffixes = suffixes[: len(batch)], suffixes[len(batch) :]
            asked = [
                ((row, len(suffix) - len(targets) + offset), target, number)
                for row, (_, suffix, inputs) in enumerate(part)
                for number, targets in wanted[inputs]
                for offset, target in enumerate(targets)
                if len(suffix) - len(targets) + offset >= 0
            ]
            continued = cache.select([row for row, *_ in part], room=len(batch[0]))
            logits_RV = self.passes.extend(continued, batch, [position for position, *_ in asked])
            yield from _answers(logits_RV, asked)

    def _batches(self, inputs: Iterable[Tokens]) -> Iterator[list[Tokens]]:
        """Split ``inputs``, sorted by length and content, so that batches do not depend on the order of
        requests."""
        return self._split(sorted(inputs, key=lambda tokens: (-len(tokens), tokens)))

    def _split(self, ordered: Iterable[Tokens], past: int = 0) -> Iterator[list[Tokens]]:
        """Split ``ordered``, the longest first, into batches of limited size with padding; ``past``
        cached tokens of each sequence count, too."""
        tokens = CPU_TOKENS if self.passes.device.type == "cpu" else AUTO_TOKENS
        most = min(tokens, AUTO_LOGITS // getattr(self.tokenizer, "vocabulary", 1))
        batch: list[Tokens] = []
        for sequence in ordered:
            if self.batch == "auto":
                full = bool(batch) and (len(batch) + 1) * (past + len(batch[0])) > most
            else:
                full = len(batch) >= self.batch
            if full:
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch


def _answers(
    logits_RV: Tensor, asked: Sequence[tuple[Place, int, int]]
) -> Iterator[tuple[int, float, bool]]:
    """For each row: the number of the request, the target's log-probability, and True if it is the most
    likely token."""
    targets = [target for _, target, _ in asked]
    targets_R1 = torch.tensor(targets, device=logits_RV.device)[:, None]
    values_R1 = logits_RV.log_softmax(-1).gather(1, targets_R1)
    likeliest_R = (logits_RV.argmax(-1) == targets_R1[:, 0]).tolist()
    values = values_R1[:, 0].double().tolist()
    for (_, _, number), value, likeliest in zip(asked, values, likeliest_R, strict=True):
        yield number, value, likeliest
