"""Documents: the split holds equal texts together, pieces lose no text, the order mixes sources."""

import pytest

from modbench.data.documents import Document, fraction, in_pieces, split_by_hash


def test_equal_texts_lie_on_one_side_of_the_split():
    texts = [f"text {number % 40}" for number in range(200)]
    corpus = split_by_hash([*texts, " ", ""], 0.2, "it")
    assert corpus.skipped == 2
    train, heldout = ({*corpus.train}, {*corpus.heldout})
    assert len(heldout) == 8
    assert not train & heldout
    assert len(corpus.train) + len(corpus.heldout) == 200


def test_split_holds_something_out_and_keeps_something_however_small():
    for share in (0.001, 0.999):
        corpus = split_by_hash(["one", "two"], share, "it")
        assert (len(corpus.train), len(corpus.heldout)) == (1, 1)


def test_pieces_hold_all_the_text_and_break_at_blank_lines_only():
    text = "\n\n".join(f"paragraph {number} " + "x" * 90 for number in range(100))
    pieces = in_pieces([Document("a", text)], size=1000)
    assert max(len(piece.text) for piece in pieces) <= 1000
    in_order = sorted(pieces, key=lambda piece: int(piece.name.partition("#")[2]))
    assert "\n\n".join(piece.text for piece in in_order) == text


def test_order_of_pieces_mixes_documents_and_repeats():
    text = "\n\n".join("x" * 90 for _ in range(100))
    pieces = in_pieces([Document("a", text), Document("b", text)], size=1000)
    owners = [piece.name[0] for piece in pieces]
    assert {*owners[:8]} == {"a", "b"}
    assert pieces == in_pieces([Document("b", text), Document("a", text)], size=1000)


def test_fraction_is_even_and_the_same_everywhere():
    drawn = [fraction(str(number)) for number in range(4000)]
    assert 0.055 < sum(value < 0.065 for value in drawn) / 4000 < 0.075
    assert fraction("pypi-en-v1") == pytest.approx(0.7214809848, abs=1e-9)
