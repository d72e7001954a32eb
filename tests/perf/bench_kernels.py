"""The parts that routed layers are made of, by themselves.

B sequences, T tokens, D model width, E experts, N rows.
"""

from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from interleaved import InTurns, Way
from modbench.model.expert_ways import AtOnce, OneByOne, Together
from modbench.model.expert_ways import Way as Experts
from modbench.model.in_one_call import InOneCall
from targets import Reach
from torch import Tensor, nn
from torch.nn import functional as F
from training import DTYPES, MadeUpText, Trained

from modbench.model import expert_ways, processor
from modbench.model.block import MLP
from modbench.model.causal_attention import KEYS, MANY, newest_attention
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.grouped import Equal, Slices, few
from modbench.routing.expert_bank import ExpertBank
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.train.numerics import autocast, device

EXPERTS, ROWS, WIDTH, EXPERT_WIDTH = 8, 4096, 256, 1024
SEQUENCES, TOKENS = 4, 512
SHAPE = ModelConfig(vocabulary=2048, width=WIDTH, layers=8, heads=4, mlp_width=EXPERT_WIDTH)


def even() -> list[int]:
    return [ROWS // EXPERTS] * EXPERTS


def skewed() -> list[int]:
    """Another load at each call; the fullest expert has about three times an even share."""
    shares_E = torch.distributions.Dirichlet(torch.ones(EXPERTS)).sample()
    drawn_N = torch.multinomial(shares_E, ROWS, replacement=True)
    return torch.bincount(drawn_N, minlength=EXPERTS).tolist()


def once(run: Callable[..., Tensor], module: nn.Module, dtype: torch.dtype, training: bool) -> Way:
    """``run`` on rows, with its backward pass where ``training``."""

    def forward(x: Tensor, counts: list[int]) -> None:
        with torch.no_grad(), autocast(dtype, x.device):
            run(x, counts)

    def step(x: Tensor, counts: list[int]) -> None:
        with autocast(dtype, x.device):
            y = run(x, counts)
        y.backward(torch.ones_like(y))
        module.zero_grad(set_to_none=True)
        x.grad = None

    return step if training else forward


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("counts", [even, skewed], ids=["even", "skewed"])
def test_bank_of_experts(
    counts: Callable[[], list[int]], training: bool, precision: str, in_turns: InTurns, reach: Reach
) -> None:
    bank = ExpertBank(SHAPE, 0, experts=EXPERTS, width=EXPERT_WIDTH)
    dense = MLP(SHAPE, 0)
    for part in (bank, dense):
        part.initialise(0)
    dtype = DTYPES[precision]
    ways = {
        "bank": once(bank, bank, dtype, training),
        "dense": once(lambda x, counts: dense(x, Context()), dense, dtype, training),
    }

    def draw() -> tuple[Tensor, list[int]]:
        return torch.randn(ROWS, WIDTH, requires_grad=True), counts()

    turns = in_turns(ways, draw)
    kind = f"{counts.__name__} load, {'training' if training else 'forward'}, {precision}"
    reach.shown(
        f"bank of experts over an MLP on as many rows, {kind}", turns.ratios("bank", "dense"), "x"
    )


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("counts", [even, skewed], ids=["even", "skewed"])
def test_grouped_mm_over_slices(
    counts: Callable[[], list[int]], precision: str, in_turns: InTurns, reach: Reach
) -> None:
    """What `modbench.model.grouped.takes_grouped` goes by, on the device at hand."""
    on = device()
    bank = ExpertBank(SHAPE, 0, experts=EXPERTS, width=EXPERT_WIDTH).to(on)
    bank.initialise(0)
    dtype = DTYPES[precision]
    ways = {
        "grouped": once(
            lambda x, counts: bank(x, torch.tensor(counts, device=on)), bank, dtype, training=True
        ),
        "slices": once(bank, bank, dtype, training=True),
    }

    def draw() -> tuple[Tensor, list[int]]:
        return torch.randn(ROWS, WIDTH, device=on, requires_grad=True), counts()

    turns = in_turns(ways, draw)
    kind = f"{counts.__name__} load, training, {precision}, {on.type}"
    reach.shown(f"grouped_mm over slices, {kind}", turns.ratios("grouped", "slices"), "x")


@pytest.mark.parametrize("precision", DTYPES)
def test_ways_of_experts(
    precision: str, in_turns: InTurns, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `modbench.model.expert_products` goes by on a CPU."""
    dtype, counts, taken = DTYPES[precision], even(), expert_ways.BY_FEATURE
    bank = ExpertBank(SHAPE, 0, experts=EXPERTS, width=EXPERT_WIDTH)
    bank.initialise(0)
    weights = bank.up.detach(), bank.down.detach()
    uneven = skewed()

    def way(how: Experts, by_feature: tuple[torch.dtype, ...] = ()) -> Way:
        def run(x_ND: Tensor) -> None:
            monkeypatch.setattr(expert_ways, "BY_FEATURE", by_feature)
            y_ND, kept = how.keeping(x_ND, *weights)
            how.backward(y_ND, x_ND, kept, (torch.float32, torch.float32))

        return run

    ways = {
        "by row": way(OneByOne(counts, SHAPE.mlp)),
        "by feature": way(OneByOne(counts, SHAPE.mlp), (dtype,)),
        "uneven, one by one": way(OneByOne(uneven, SHAPE.mlp), taken),
        "uneven, all together": way(Together(Slices(uneven), SHAPE.mlp)),
        "uneven, at once": way(AtOnce(uneven, SHAPE.mlp, equal=False)),
        "even, all together": way(Together(Equal(), SHAPE.mlp)),
        "even, at once": way(AtOnce(counts, SHAPE.mlp, equal=True)),
    }
    turns = in_turns(ways, lambda: (torch.randn(ROWS, WIDTH).to(dtype),))
    what = f"experts, hidden layer by feature over by row, {precision}"
    reach.shown(what, turns.ratios("by feature", "by row"), "x")
    usual = "by feature" if dtype in taken else "by row"
    for name in (name for name in ways if name.endswith(("together", "at once"))):
        other = usual if name.startswith("even") else "uneven, one by one"
        reach.shown(f"experts over one by one, {name}, {precision}", turns.ratios(name, other), "x")


SMALL = {  # experts, their width, rows; all of model width 128
    "8 experts, 2,048 rows": (8, 192, 2048),
    "64 experts, 8,192 rows": (64, 48, 8192),
    "8 experts, 8 rows": (8, 192, 8),
}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("size", SMALL)
def test_small_experts(size: str, precision: str, in_turns: InTurns, reach: Reach) -> None:
    """What `modbench.model.in_one_call.takes` goes by, with another load in each turn: training, and of
    a few rows what decoding does."""
    (experts, hidden, rows), dtype, width = SMALL[size], DTYPES[precision], 128
    model = ModelConfig(vocabulary=2048, width=width, layers=4, heads=4)
    bank = ExpertBank(model, 0, experts=experts, width=hidden)
    bank.initialise(0)
    training = rows > experts
    held = torch.float32 if training else dtype
    weights = bank.up.detach().to(held), bank.down.detach().to(held)

    def way(kind: Callable[[list[int]], Experts]) -> Way:
        def run(x_ND: Tensor, counts: list[int]) -> None:
            how = kind(counts)
            if not training:
                how.forward(x_ND, *weights)
                return
            y_ND, kept = how.keeping(x_ND, *weights)
            how.backward(y_ND, x_ND, kept, (held, held))

        return run

    def draw() -> tuple[Tensor, list[int]]:
        load_E = torch.bincount(torch.randint(experts, (rows,)), minlength=experts)
        return torch.randn(rows, width).to(dtype), load_E.tolist()

    ways = {
        "in one call": way(lambda counts: InOneCall(counts, model.mlp)),
        "one by one": way(lambda counts: OneByOne(counts, model.mlp)),
        "at once": way(lambda counts: AtOnce(counts, model.mlp, equal=False)),
    }
    turns = in_turns(ways, draw)
    for other in ("one by one", "at once"):
        what = f"small experts, {size}, in one call over {other}, {precision}"
        reach.shown(what, turns.ratios("in one call", other), "x")


@pytest.mark.parametrize("precision", DTYPES)
def test_gather_and_put_back(precision: str, in_turns: InTurns, reach: Reach) -> None:
    """An eighth of the tokens, out of the stream and into it again, and the gradients' way back."""
    kept = TOKENS // 8

    def draw() -> tuple[Tensor, Tensor]:
        x_BTD = torch.randn(SEQUENCES, TOKENS, WIDTH, dtype=DTYPES[precision], requires_grad=True)
        chosen_BK = torch.rand(SEQUENCES, TOKENS).argsort(1)[:, :kept]
        selected_BT = torch.zeros(SEQUENCES, TOKENS, dtype=torch.bool).scatter(1, chosen_BK, True)
        return x_BTD, selected_BT

    def selected(x_BTD: Tensor, selected_BT: Tensor) -> None:
        entering = GatheredTokens(x_BTD, selected_BT, [kept] * SEQUENCES, Context(), layer=0)
        y_BTD = entering.add_to(x_BTD, entering.x_RKD * 2)
        y_BTD.backward(y_BTD.detach())
        x_BTD.grad = None

    def everywhere(x_BTD: Tensor, selected_BT: Tensor) -> None:
        y_BTD = x_BTD + x_BTD * 2
        y_BTD.backward(y_BTD.detach())
        x_BTD.grad = None

    turns = in_turns({"selected": selected, "everywhere": everywhere}, draw)
    ratios = turns.ratios("selected", "everywhere")
    reach.shown(f"gather and put back an eighth, over x + 2 x for all, {precision}", ratios, "x")


@pytest.mark.parametrize("precision", DTYPES)
def test_embedding_head_and_loss(precision: str, in_turns: InTurns, reach: Reach) -> None:
    """A training step of a decoder without layers, as a share of one with eight."""
    whole, shell = (Trained("vanilla", SHAPE, DTYPES[precision]) for _ in range(2))
    shell.model.layers = nn.ModuleList()
    text = MadeUpText(SHAPE.vocabulary, SEQUENCES, TOKENS)
    turns = in_turns({"shell": shell, "whole": whole}, text)
    share = [100 * ratio for ratio in turns.ratios("shell", "whole")]
    reach.shown(f"embedding, head and loss, of a dense training step, {precision}", share, "%")


class Forgotten:
    """Called, it leaves nothing of what there was in the caches of the processor's cores, as when a
    model's other layers and the keys and values of a long past came between. A cache that cores share
    may be larger."""

    def __init__(self) -> None:
        self._others = torch.zeros(2**24)

    def __call__(self) -> None:
        self._others.add_(1)


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_a_few_rows(rows: int, in_turns: InTurns, reach: Reach) -> None:
    """A dense MLP's two matmuls; what `modbench.model.processor.SLOW_FEW` goes by."""
    weights = [part.weight.detach() for part in (MLP(SHAPE, 0).up, MLP(SHAPE, 0).down)]

    def draw() -> tuple[list[Tensor]]:
        return ([torch.randn(rows, weight_FD.shape[1]) for weight_FD in weights],)

    def way(multiplied: Callable[[Tensor, Tensor], Tensor]) -> Way:
        def run(drawn: list[Tensor]) -> None:
            for x_ND, weight_FD in zip(drawn, weights, strict=True):
                multiplied(x_ND, weight_FD)

        return run

    with torch.no_grad():
        turns = in_turns({"few": way(few), "plain": way(F.linear)}, draw, before=Forgotten())
    what = f"linear layers of a few rows over torch's, {rows}{taken(processor.SLOW_FEW)}"
    reach.shown(what, turns.ratios("few", "plain"), "x")


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("key_heads", [4, 1])
@pytest.mark.parametrize("past", [128, 2048])
def test_attention_of_the_newest_token(
    past: int, key_heads: int, precision: str, in_turns: InTurns, reach: Reach
) -> None:
    """To a past which grows as a cache does; what `modbench.model.causal_attention.MANY` and
    `modbench.model.processor.SLOW_FEW` go by."""
    heads, width = 4, WIDTH // 4
    kept = torch.randn(2, SEQUENCES, key_heads, 2 * past, width).to(DTYPES[precision])
    sizes = cycle(range(past, 2 * past))
    whole = KEYS if kept.dtype == torch.bfloat16 else 1

    def draw() -> tuple[Tensor, int]:
        return torch.randn(SEQUENCES, heads, 1, width).to(kept.dtype), next(sizes)

    def way(by_matmuls: bool) -> Way:
        def run(q_BH1P: Tensor, seen: int) -> None:
            keys = -(-seen // whole) * whole if by_matmuls else seen
            k_BKCP, v_BKCP = kept[:, :, :, :keys]
            newest_attention(q_BH1P, k_BKCP, v_BKCP, [seen] * SEQUENCES, by_matmuls=by_matmuls)

        return run

    with torch.no_grad():
        turns = in_turns({"ours": way(True), "plain": way(False)}, draw, before=Forgotten())
    many = SEQUENCES * heads * past * width >= MANY[kept.dtype]
    what = f"attention of the newest token over PyTorch's, {past} keys, {heads // key_heads} heads a key"
    reach.shown(
        f"{what}, {precision}{taken(processor.SLOW_FEW and many)}", turns.ratios("ours", "plain"), "x"
    )


def taken(way: bool) -> str:
    """Whether it is this machine's."""
    return ", taken here" if way else ", not taken here"
