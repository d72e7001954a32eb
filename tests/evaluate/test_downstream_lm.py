"""lm-eval's view of our models: log-likelihoods that a bigram table gives by hand.

B sequences, T tokens, V vocabulary.
"""

import math
import random
from itertools import pairwise

import pytest
import torch
from local_tasks import request as ask
from made_up import ByHand
from torch import Tensor, nn

from modbench.evaluate.routed_lm import RoutedLM
from modbench.model.context import Context

LETTERS = "abcdefgh "


class Letters:
    """One token per letter; end of text is the last id."""

    end_of_text = len(LETTERS)
    vocabulary = end_of_text + 1

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(LETTERS[token] for token in ids)


class Pairs(Letters):
    """Each "ab" is one token of its own, wherever it stands; it has the number of "h"."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.replace("ab", "h"))


class Bigram(ByHand):
    """log p(next | last token) from a random table. Remembers what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        size = len(LETTERS) + 1
        table_VV = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
        self.log_p_VV = nn.Parameter(table_VV.log_softmax(-1))
        self.calls: list[tuple[Tensor, Context]] = []

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        assert not self.training
        self.calls.append((tokens_BT, context))
        return self.log_p_VV[tokens_BT]

    def log_p(self, ids: list[int]) -> float:
        """Of all but the first of ``ids``."""
        return sum(self.log_p_VV[a, b].item() for a, b in pairwise(ids))


class Summing(ByHand):
    """Logits that depend on all real tokens so far, so that a window shows; poison for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table_VV = nn.Parameter(torch.randn(10, 10, generator=torch.Generator().manual_seed(1)))

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        seen_BTV = self.table_VV[tokens_BT]
        if context.lengths_B is not None:
            padding_BT = ~context.real(seen_BTV)
            seen_BTV = seen_BTV.masked_fill(padding_BT[..., None], math.nan)
        return seen_BTV.cumsum(1)

    def log_p(self, inputs: list[int], targets: list[int]) -> float:
        """Of ``targets``, at the end of ``inputs``, all in one window."""
        log_p_TV = self.table_VV[inputs].cumsum(0).log_softmax(-1)[-len(targets) :]
        return sum(log_p_TV[place, token].item() for place, token in enumerate(targets))


def test_log_likelihood_is_the_sum_over_the_continuation_alone():
    model, text = Bigram(), Letters()
    [(total, _)] = RoutedLM(model, text).loglikelihood([ask("abc", " de")])
    assert total == pytest.approx(model.log_p(text.encode("c de")), abs=1e-6)


def test_scores_of_a_model_in_bfloat16_are_worked_out_in_float32():
    model, text = Bigram().to(torch.bfloat16), Letters()
    [(total, _)] = RoutedLM(model, text).loglikelihood([ask("abc", " de")])
    log_p_VV = model.log_p_VV.float().log_softmax(-1)
    expected = sum(log_p_VV[a, b].item() for a, b in pairwise(text.encode("c de")))
    assert total == pytest.approx(expected, abs=1e-6)


def test_an_empty_context_is_one_end_of_text_token():
    model, text = Bigram(), Letters()
    [(total, _)] = RoutedLM(model, text).loglikelihood([ask("", "ab")])
    assert total == pytest.approx(model.log_p([text.end_of_text, 0, 1]), abs=1e-6)


def test_greedy_holds_for_the_whole_continuation():
    model, text = Bigram(), Letters()
    likeliest = model.log_p_VV.argmax(-1).tolist()
    first = likeliest[0]
    written = text.decode([first, likeliest[first]])
    other = text.decode([first, (likeliest[first] + 1) % len(LETTERS)])
    answers = RoutedLM(model, text).loglikelihood([ask("a", written), ask("a", other)])
    assert [greedy for _, greedy in answers] == [True, False]


def test_white_space_at_the_end_of_a_context_counts_to_the_continuation():
    model, text = Bigram(), Letters()
    answers = RoutedLM(model, text).loglikelihood([ask("abc ", "de"), ask("abc", " de")])
    assert answers[0] == answers[1]


def test_a_token_across_the_border_does_not_hide_the_continuation():
    model, text = Bigram(), Pairs()
    [(total, _)] = RoutedLM(model, text).loglikelihood([ask("ca", "bd")])
    assert total == pytest.approx(model.log_p(text.encode("a") + text.encode("bd")), abs=1e-6)


def test_selection_is_causal_and_lengths_are_given_exactly_where_there_is_padding():
    model = Bigram()
    lm = RoutedLM(model, Letters())
    lm.loglikelihood([ask("abcd", "ef"), ask("a", "b")])
    lm.loglikelihood([ask("abc", "d"), ask("bcd", "a")])
    (ragged_BT, ragged), (even_BT, even) = model.calls
    assert ragged.lengths_B.tolist() == [5, 1]
    assert ragged_BT.shape == (2, 5)
    assert even.lengths_B is None
    assert even_BT.shape == (2, 3)
    assert {ragged.selection, even.selection} == {"causal"}


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_neither_batch_nor_padding_nor_order_changes_a_score(batch):
    rng = random.Random(0)

    def words(most: int) -> str:
        return "".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, most)))

    requests = [ask(words(11), words(4)) for _ in range(40)]
    model, text = Summing(), Letters()
    alone = [RoutedLM(model, text, sequence=16).loglikelihood([request])[0] for request in requests]
    together = RoutedLM(model, text, sequence=16, batch=batch).loglikelihood(requests)
    assert [total for total, _ in together] == pytest.approx([total for total, _ in alone], abs=1e-6)
    order = rng.sample(range(40), 40)
    shuffled = RoutedLM(model, text, sequence=16, batch=batch).loglikelihood(
        [requests[n] for n in order]
    )
    assert shuffled == [together[n] for n in order]


def test_one_token_choices_of_one_context_share_a_forward_pass():
    model = Bigram()
    RoutedLM(model, Letters()).loglikelihood([ask("abc", choice) for choice in "defg"])
    [(tokens_BT, _)] = model.calls
    assert tokens_BT.tolist() == [[0, 1, 2]]


def test_a_long_context_is_cut_from_the_left_and_the_continuation_scored_in_full():
    model, text = Summing(), Letters()
    context, continuation = "abcdefgh" * 3, "hgf"
    [(total, _)] = RoutedLM(model, text, sequence=8).loglikelihood([ask(context, continuation)])
    whole = text.encode(context + continuation)
    assert total == pytest.approx(model.log_p(whole[-9:-1], whole[-3:]), abs=1e-5)


def test_a_continuation_longer_than_the_window_takes_several():
    model, text = Summing(), Letters()
    [(total, _)] = RoutedLM(model, text, sequence=4).loglikelihood([ask("ab", "cdefgh")])
    ids = text.encode("abcdefgh")
    by_hand = model.log_p(ids[1:5], ids[2:6]) + model.log_p(ids[3:7], ids[6:8])
    assert total == pytest.approx(by_hand, abs=1e-5)


def test_rolling_log_likelihood_of_a_bigram_is_the_plain_sum_whatever_the_window():
    model, text = Bigram(), Letters()
    words = "abcdefgh hgfedcba ab"
    [total] = RoutedLM(model, text, sequence=5).loglikelihood_rolling([ask(words)])
    assert total == pytest.approx(model.log_p([text.end_of_text, *text.encode(words)]), abs=1e-5)
