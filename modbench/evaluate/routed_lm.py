"""Adapter of our models to lm-eval; every token is scored under the causal selection rule, unless the
training rule is asked for.

B sequences, T tokens, V vocabulary, R requested rows of logits.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

import torch
from lm_eval.api.instance import Instance
from torch import Tensor

from modbench.errors import UserError, known_names
from modbench.evaluate.scored_lm import AUTO_PROMPTS, Batch, Rating, ScoredLM, Tokens
from modbench.model.context import Context, Selection
from modbench.model.generate import continue_prompts
from modbench.model.kv_cache import Cache
from modbench.model.language_model import LanguageModel
from modbench.model.trace import Trace

T = TypeVar("T")
#: (row of the batch, place in the sequence) of a requested row of logits.
Place = tuple[int, int]
#: A requested row of logits: its place, its target and the number of its request.
Asked = tuple[Place, int, int]
#: For the inputs of a forward pass: the number of each request, and its targets at their end.
Wanted = Mapping[Tokens, Sequence[tuple[int, Tokens]]]
RULES: tuple[str, ...] = get_args(Selection)
#: Largest difference in nats of a log-probability scored from a cached prefix and in one pass. If more
#: than half of the requests exceed it, the model does not continue from its cache; of a model that does,
#: rounding may flip a routing decision now and then. Weights of half precision round more.
REUSE_TOLERANCE, HALF_TOLERANCE = 1e-3, 0.2


class RoutedLM(ScoredLM):
    """A model of modbench, as lm-eval wants it.

    Sequences are padded on the right, with their lengths in the context. Continuations that share a
    context, such as the choices of an item, are scored from one cached pass over it; the first of them
    are scored before with and without the cache, which ``cost`` leaves out, and if that differs the
    cache is not used (``reuses`` becomes False). Log-softmax is in float32 or wider.

    Args:
        tokenizer: has ``encode(text) -> ids``, ``decode(ids) -> text``, ``vocabulary`` and
            ``end_of_text``.
        sequence: largest input length, the model's training length.
        rule: ``causal``, or ``topk``: the training rule, which looks ahead, so that scores are not those
            of a language model.
        reuse: score continuations that share a context from one pass over it.
    """

    model: LanguageModel

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Any,
        *,
        sequence: int = 256,
        batch: Batch = "auto",
        rule: Selection = "causal",
        reuse: bool = True,
    ) -> None:
        super().__init__(batch=batch)
        if rule not in RULES:
            raise UserError(f"rule '{rule}' is not known; {known_names(rule, RULES)}")
        self.model = model
        self.ledger = model.ledger
        self.tokenizer = tokenizer
        self.max_length, self.vocabulary = sequence, tokenizer.vocabulary
        self.rule = rule
        self.reuses = reuse and rule == "causal"
        self.watch: Callable[[], object] = lambda: None  #: called before each forward pass
        self._compared = False

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.end_of_text  # type: ignore[no-any-return]

    @property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    @property
    def tokenizer_name(self) -> str:
        return type(self.tokenizer).__name__

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

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """For each (context, options): the text that the model continues with, through its KV cache:
        greedily, or drawn with a generator of its own where the options say ``do_sample`` with a
        ``temperature`` above 0. A text ends before the first stop string of ``until``, at an end-of-text
        token, or after ``max_gen_toks`` tokens.

        Raise a `UserError` for the training rule, which needs tokens that are not there yet."""
        if self.rule != "causal":
            raise UserError("a task that generates text needs the causal rule; leave --rule topk out")
        texts = [""] * len(requests)
        with self._timed():
            prompts = list(self._prompts(requests))
            ordered = sorted(
                range(len(prompts)), key=lambda number: (-len(prompts[number][0]), prompts[number][0])
            )
            size = AUTO_PROMPTS if self.batch == "auto" else self.batch
            for start in range(0, len(ordered), size):
                numbers = ordered[start : start + size]
                continued = self._continued([prompts[number] for number in numbers])
                for number, text in zip(numbers, continued, strict=True):
                    texts[number] = text
        return texts

    def _continued(self, prompts: Sequence[tuple[list[int], dict[str, Any]]]) -> list[str]:
        """Continue a batch of prompts token by token; sequences that have ended are read no further."""
        written: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)

        def goes_on(number: int, token: int) -> bool:
            if token == self.eot_token_id:
                return False
            written[number].append(token)
            options = prompts[number][1]
            text = self.tokenizer.decode(written[number])
            starts = [start for stop in options["until"] if (start := text.find(stop)) >= 0]
            texts[number] = text[: min(starts, default=None)]
            return not starts and len(written[number]) < options["max_gen_toks"]

        temperatures = [o["temperature"] if o["do_sample"] else 0.0 for _, o in prompts]
        reader = _Reader(self, [tuple(prompt) for prompt, _ in prompts])
        continue_prompts(reader, temperatures, [0] * len(prompts), goes_on)
        return texts

    def _rated(self, windows: Sequence[tuple[int, Tokens, Tokens]]) -> Iterator[Rating]:
        """Rate ``windows``. Those with equal inputs share a forward pass, such as one-token choices of
        one context."""
        wanted: dict[Tokens, list[tuple[int, Tokens]]] = defaultdict(list)
        for number, inputs, targets in windows:
            wanted[inputs].append((number, targets))
        groups: dict[Tokens, list[Tokens]] = defaultdict(list)
        for inputs, asked in wanted.items():
            longest = max(len(targets) for _, targets in asked)
            groups[inputs[: len(inputs) - longest + 1]].append(inputs)
        shared = {prefix: members for prefix, members in groups.items() if len(members) > 1}
        if self.reuses and shared and not self._compared:
            self._compared = True
            started = time.perf_counter()
            self.reuses = self.with_batch(self.batch)._continues(shared, wanted)
            self.cost.seconds -= time.perf_counter() - started
        if not self.reuses:
            shared = {}
        for batch in self._batches(shared):
            yield from self._from_cache({prefix: shared[prefix] for prefix in batch}, wanted)
        read = {inputs for members in shared.values() for inputs in members}
        for batch in self._batches(wanted.keys() - read):
            yield from self._in_one_pass(batch, wanted)

    def _continues(self, shared: dict[Tokens, list[Tokens]], wanted: Wanted) -> bool:
        """Return True if the model continues from its cache: most requests of the first batch of
        ``shared`` get the same scores with and without it."""
        first = next(self._batches(shared))
        totals: dict[int, float] = defaultdict(float)
        for number, value, _ in self._from_cache({prefix: shared[prefix] for prefix in first}, wanted):
            totals[number] += value
        for batch in self._batches(inputs for prefix in first for inputs in shared[prefix]):
            for number, value, _ in self._in_one_pass(batch, wanted):
                totals[number] -= value
        half = any(parameter.element_size() < 4 for parameter in self.model.parameters())
        tolerance = HALF_TOLERANCE if half else REUSE_TOLERANCE
        return sum(abs(off) > tolerance for off in totals.values()) <= len(totals) / 2

    def _in_one_pass(self, batch: Sequence[Tokens], wanted: Wanted) -> Iterator[Rating]:
        asked = [
            row_of_logits
            for row, inputs in enumerate(batch)
            for row_of_logits in _asked(wanted, row, inputs, 0, len(inputs))
        ]
        yield from _ratings(self.run(batch, [place for place, *_ in asked]), asked)

    def _from_cache(self, groups: dict[Tokens, list[Tokens]], wanted: Wanted) -> Iterator[Rating]:
        """Score ``groups``, prefix -> inputs that begin with it: each prefix is read once."""
        logits_BV, cache = self.prefill(list(groups))
        rows = [
            (row, len(prefix), inputs) for row, prefix in enumerate(groups) for inputs in groups[prefix]
        ]
        first = [
            row_of_logits
            for row, past, inputs in rows
            for row_of_logits in _asked(wanted, row, inputs, past - 1, past)
        ]
        if first:
            yield from _ratings(logits_BV[[row for (row, _), *_ in first]], first)
        rest = sorted(
            (past - len(inputs), row, inputs[past:], inputs)
            for row, past, inputs in rows
            if len(inputs) > past
        )
        longest = max(map(len, groups))
        for batch in self._split(rest, lambda suffix: longest - suffix[0]):
            asked = [
                row_of_logits
                for place, (_, _, suffix, inputs) in enumerate(batch)
                for row_of_logits in _asked(
                    wanted, place, inputs, len(inputs) - len(suffix), len(inputs)
                )
            ]
            continued = cache.select([row for _, row, _, _ in batch], room=-batch[0][0])
            suffixes = [suffix for _, _, suffix, _ in batch]
            yield from _ratings(self.run(suffixes, [place for place, *_ in asked], continued), asked)

    def _batches(self, inputs: Iterable[Tokens]) -> Iterator[Sequence[Tokens]]:
        """Split ``inputs``, sorted by length and content, so that batches do not depend on the order of
        requests."""
        return self._split(sorted(inputs, key=lambda tokens: (-len(tokens), tokens)), len)

    def _split(self, ordered: Sequence[T], length: Callable[[T], int]) -> Iterator[Sequence[T]]:
        """Split ``ordered``, of falling ``length``, into batches of limited size with padding."""
        start = 0
        while start < len(ordered):
            size = self._batch_of(length(ordered[start]))
            yield ordered[start : start + size]
            start += size

    def prefill(self, prefixes: Sequence[Tokens]) -> tuple[Tensor, Cache]:
        """Return the logits (B, V) after each prefix, and the cache that holds them."""
        cache = Cache(len(prefixes))
        places = [(row, len(prefix) - 1) for row, prefix in enumerate(prefixes)]
        return self.run(prefixes, places, cache), cache

    @torch.no_grad()
    def run(
        self, batch: Sequence[Tokens], places: Sequence[Place], cache: Cache | None = None
    ) -> Tensor:
        """Return the logits (R, V), in float32 or wider, at ``places`` of the sequences ``batch``, which
        follow those of ``cache``."""
        self.watch()
        lengths = tuple(map(len, batch))
        longest = max(lengths)
        padded = [[*tokens, *[self.eot_token_id] * (longest - len(tokens))] for tokens in batch]
        tokens_BT = torch.tensor(padded, device=self.device)
        lengths_B = None
        if min(lengths) < longest:
            lengths_B = torch.tensor(lengths, device=self.device)
        past = tuple(cache.read) if cache is not None else ()
        context = Context(selection=self.rule, lengths_B=lengths_B, cache=cache)
        rows_R, places_R = torch.tensor(list(places), device=self.device).unbind(1)
        logits_RV = self.model.logits_at(tokens_BT, context, rows_R, places_R)
        self._count(lengths, len(places), past=past, counts=context.trace.counts)
        routed, offered = _routed(context.trace, lengths_B, lengths)
        self.cost.routed += routed
        self.cost.offered += offered
        return logits_RV.float() if logits_RV.element_size() < 4 else logits_RV


class _Reader:
    """Reads ``prompts`` and then one token at a time through the cache."""

    def __init__(self, lm: RoutedLM, prompts: Sequence[Tokens]) -> None:
        self.lm, self.prompts = lm, prompts

    def start(self) -> Tensor:
        """Return the logits (B, V) after each prompt."""
        logits_BV, self.cache = self.lm.prefill(self.prompts)
        return logits_BV

    def advance(self, kept: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Drop all sequences but ``kept``, read one of ``tokens`` of each, return the logits (B, V)."""
        if len(kept) < self.cache.sequences:
            self.cache = self.cache.select(kept)
        return self.lm.run(
            [(token,) for token in tokens], [(row, 0) for row in range(len(kept))], self.cache
        )


def _asked(wanted: Wanted, row: int, inputs: Tokens, start: int, end: int) -> list[Asked]:
    """Return the rows of logits at the places ``start`` to ``end`` of ``inputs``, of which ``row`` of a
    batch begins at ``start``."""
    return [
        ((row, place - start), target, number)
        for number, targets in wanted[inputs]
        for place, target in enumerate(targets, len(inputs) - len(targets))
        if start <= place < end
    ]


def _ratings(logits_RV: Tensor, asked: Sequence[Asked]) -> Iterator[Rating]:
    targets_R1 = torch.tensor([target for _, target, _ in asked], device=logits_RV.device)[:, None]
    values_R1 = logits_RV.log_softmax(-1).gather(1, targets_R1)
    likeliest_R = (logits_RV.argmax(-1) == targets_R1[:, 0]).tolist()
    values = values_R1[:, 0].double().tolist()
    for (_, _, number), value, likeliest in zip(asked, values, likeliest_R, strict=True):
        yield number, value, likeliest


def _routed(trace: Trace, lengths_B: Tensor | None, lengths: Sequence[int]) -> tuple[int, int]:
    """Return the pairs of a real token and a routed layer that processed it, and all such pairs. A layer
    whose tokens all go to some expert processes each."""
    layers: dict[int, int] = {}
    for (layer, name), value in trace.tensors.items():
        if name == "selected":
            layers[layer] = _real_sum(value, lengths_B)
        elif name == "taken" and (layer, "selected") not in trace.tensors:
            padded = lengths_B is not None and value.numel() > sum(lengths)
            chosen = (value > 0).view(len(lengths), -1) if padded else value > 0
            layers[layer] = _real_sum(chosen, lengths_B if padded else None)
        elif name == "load":
            layers.setdefault(layer, sum(lengths))
    return sum(layers.values()), len(layers) * sum(lengths)


def _real_sum(chosen_BT: Tensor, lengths_B: Tensor | None) -> int:
    if lengths_B is not None:
        places_T = torch.arange(chosen_BT.shape[1], device=chosen_BT.device)
        chosen_BT = chosen_BT & (places_T < lengths_B[:, None])
    return int(chosen_BT.sum())
