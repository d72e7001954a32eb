"""The ledger's arithmetic, against numbers worked out by hand."""

import numpy as np
import pytest

from modbench.ledger import Flops, Ledger, Workload, attention, matmul
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import build_router


def test_a_matmul_costs_two_per_multiply_accumulate_and_as_much_per_gradient() -> None:
    train = Workload.uniform(1, 3, "train")
    both = matmul(train, 0, "mlp", rows=3, inner=5, columns=7)
    assert (both.total("model", "forward"), both.total("model", "backward")) == (210, 420)
    frozen = matmul(train, 0, "mlp", rows=3, inner=5, columns=7, weight_gradient=False)
    assert frozen.total("full", "backward") == 210
    assert matmul(Workload.uniform(1, 3), 0, "mlp", rows=3, inner=5, columns=7).total() == 210


def test_attention_is_a_triangle_in_model_and_a_square_in_full() -> None:
    workload = Workload(lengths=(3, 5))
    ledger = attention(workload, 0, heads=2, head_width=4)
    assert ledger.total("model") == (6 + 15) * 4 * 2 * 4
    assert ledger.total("full") == (9 + 25) * 4 * 2 * 4


def test_attention_that_no_kernel_fuses_goes_back_at_twice_its_square() -> None:
    """Values of another width than keys: matmuls, whose scores are kept and not computed again."""
    ledger = attention(Workload.uniform(1, 3, "train"), 0, heads=2, head_width=4, value_width=6)
    forward = 9 * 2 * 2 * (4 + 6)
    assert ledger.total("executed", "forward") == ledger.total("full", "forward") == forward
    assert ledger.total("executed", "backward") == ledger.total("full", "backward") == 2 * forward
    assert ledger.total("model", "backward") == 2 * 6 * 2 * 2 * (4 + 6)


def test_a_padded_row_sees_a_window_of_what_the_last_real_one_does() -> None:
    workload = Workload(lengths=(3, 5), padding=True)
    # Of 3 tokens: 1 + 2 + 2, and two padded rows of 2; of 5: 1 + 2 + 2 + 2 + 2.
    assert workload.pairs(window=2) == Flops(5 + 2 * 2 + 9, 50)
    cached = Workload(lengths=(1, 3), past=(4, 0), padding=True)
    # 5 keys of one token and of two padded rows, at most 3 of them in a window; and the triangle of 3.
    assert cached.pairs() == Flops(3 * 5 + 6, 2 * 3 * 5)
    assert cached.pairs(window=3) == Flops(3 * 3 + 6, 2 * 3 * 5)


def test_padding_is_counted_only_where_it_is_asked_for() -> None:
    lengths = (3, 5)
    assert (Workload(lengths=lengths).slots, Workload(lengths=lengths, padding=True).slots) == (8, 10)
    assert Workload(lengths=lengths, padding=True).pairs() == Flops(30, 50)
    assert Workload(lengths=lengths, padding=True).tokens == 8


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="phase 'trian' is not known; known: forward, train"):
        Workload(lengths=(1,), phase="trian")
    with pytest.raises(ValueError, match="convention 'modle' is not known; known: model, full"):
        Ledger().total("modle") if Ledger().entries else Ledger(
            {(0, "mlp", "forward"): Flops(1, 1)}
        ).total("modle")
    with pytest.raises(ValueError, match="one or more sequences"):
        Workload(lengths=())


def mod_to_dense(convention: str, *, logits: bool) -> float:
    """The 217 M shape: 18 layers of 896, V = 32k, S = 2048, 12.5 % every other block, forward."""
    shape = ModelConfig(
        vocabulary=32_000, width=896, layers=18, heads=14, mlp="gelu", mlp_width=3584, tied_head=True
    )
    totals = []
    for name in ("mod", "vanilla"):
        import torch

        from modbench.routing.build import RoutedDecoder

        with torch.device("meta"):
            model = RoutedDecoder(
                shape, build_router(name, {"causal": "aux_bce"} if name == "mod" else {})
            )
        ledger = model.ledger(Workload.uniform(1, 2048))
        head = ledger.by_component(convention)["head"]
        totals.append(ledger.total(convention) - (0 if logits else head))
    return totals[0] / totals[1]


@pytest.mark.parametrize(
    ("convention", "logits", "ratio"),
    [
        ("full", False, 0.547),
        ("model", True, 0.608),
    ],
)
def test_mod_to_dense_at_217m_is_the_published_ratio(
    convention: str, logits: bool, ratio: float
) -> None:
    assert mod_to_dense(convention, logits=logits) == pytest.approx(ratio, abs=5e-4)


def test_a_dense_model_worked_out_by_hand() -> None:
    shape = ModelConfig(vocabulary=11, width=8, layers=1, heads=2, kv_heads=1, mlp_width=12)
    ledger = build_model(shape, build_router("vanilla")).ledger(Workload.uniform(2, 3, "train"))
    qkv, out = 2 * 6 * 8 * (8 + 2 * 4), 2 * 6 * 8 * 8
    scores = 2 * 6 * 4 * 8
    mlp = 2 * 6 * 8 * 24 + 2 * 6 * 12 * 8
    head = 2 * 6 * 8 * 11
    assert ledger.by_component() == {
        "attention.qkv": 3 * qkv,
        "attention.scores": 3 * scores,
        "attention.out": 3 * out,
        "mlp": 3 * mlp,
        "head": 3 * head,
    }


def test_whole_numbers_of_any_kind_count_as_pythons() -> None:
    """Small ones of numpy's overflow, and one workload's cached result must not serve another."""
    small = Workload(lengths=(np.int16(301),), past=[np.int64(3)], phase="decode")
    spent = [
        attention(workload, 0, heads=4, head_width=64)
        for workload in (small, Workload(lengths=(301,), past=(3,), phase="decode"))
    ]
    assert spent[0].total() == spent[1].total() == 4 * 4 * 64 * (301 * 3 + 301 * 302 // 2)
    for ledger in (*spent, matmul(small, 0, "x", rows=np.int64(3), inner=2, columns=2)):
        assert type(ledger.total()) is int
        assert {type(flops) for flops in ledger.by_component().values()} == {int}
