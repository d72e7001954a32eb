"""Tokenizers lose nothing, are trained alike every time, and are fully said by their merges."""

import pytest

from modbench.data.tokenizer import Tokenizer, train_bpe
from modbench.errors import UserError

TEXTS = [
    f"The {word} of the {word}s goes to the {word}.\n\n" * 5
    for word in ("king", "queen", "fool", "ghost")
]
AWKWARD = ["", " ", "\n\n\n", "naïve ½ 😀", "a\x00b", "<|endoftext|>", "don't\tstop  ", "\u2028\u00a0x"]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS, 280)


@pytest.mark.parametrize("text", AWKWARD, ids=[ascii(text) for text in AWKWARD])
def test_text_comes_back_unchanged(bpe, text):
    for tokenizer in (Tokenizer(), bpe):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.end_of_text not in ids
        assert sum(len(tokenizer.pieces[index]) for index in ids) == len(text.encode())


def test_byte_tokenizer_has_the_bytes_and_end_of_text():
    tokenizer = Tokenizer()
    assert (tokenizer.vocabulary, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.encode("é") == [0xC3, 0xA9]


def test_merges_alone_rebuild_the_tokenizer(bpe):
    again = Tokenizer([list(merge) for merge in bpe.merges])
    assert again.pieces == bpe.pieces
    assert again.encode(TEXTS[2]) == bpe.encode(TEXTS[2])
    each = [[*bpe.encode(text), bpe.end_of_text] for text in TEXTS]
    assert again.stream(TEXTS).tolist() == [index for ids in each for index in ids]


def test_two_merges_that_make_one_piece_share_an_id():
    a, b, c = b"abc"
    tokenizer = Tokenizer([(a, b), (b, c), (256, c), (a, 257)])
    assert tokenizer.pieces[256:] == (b"ab", b"bc", b"abc", b"")
    assert tokenizer.decode(tokenizer.encode("abcab")) == "abcab"


def test_too_little_text_for_the_vocabulary_is_said_with_what_would_do():
    with pytest.raises(UserError, match=r"vocabulary is 2048, .* only 26\d ids; set vocabulary = 26\d"):
        train_bpe(["abab cdcd"], 2048)
