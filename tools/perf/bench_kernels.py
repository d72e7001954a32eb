"""The fast paths of modbench.kernels against their plain definitions, as whole training steps, and the
parts that routed layers are made of, by themselves.

B sequences, T tokens, D model width, E experts, N rows.
"""

from collections.abc import Callable

import pytest
import torch
from interleaved import InTurns, Way
from targets import Reach
from torch import Tensor, nn
from training import DTYPES, MadeUpText, Trained

from modbench import kernels
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.mlp import MLP
from modbench.routing.expert_bank import ExpertBank
from modbench.routing.gathered_tokens import GatheredTokens
from modbench.train.numerics import autocast

EXPERTS, ROWS, WIDTH, EXPERT_WIDTH = 8, 4096, 256, 1024
SEQUENCES, TOKENS = 4, 512
SHAPE = ModelConfig(vocabulary=2048, width=WIDTH, layers=8, heads=4, mlp_width=EXPERT_WIDTH)
#: Shape, sequences and tokens: four layers of width 128, eight of width 256, and a large vocabulary.
STEPS = {
    "quick": (ModelConfig(vocabulary=2048, width=128, layers=4, heads=4), 4, 256),
    "wide": (ModelConfig(vocabulary=2048, width=256, layers=8, heads=4), 4, 512),
    "vocabulary": (ModelConfig(vocabulary=65_536, width=128, layers=2, heads=4), 8, 256),
}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(
    ("shape", "router"),
    [
        ("quick", "token_choice"),
        ("wide", "token_choice"),
        ("quick", "expert_choice"),
        ("wide", "expert_choice"),
        ("vocabulary", "vanilla"),
    ],
)
def test_fast_kernels_over_plain(
    shape: str,
    router: str,
    precision: str,
    in_turns: InTurns,
    reach: Reach,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table of modbench/kernels/README.md."""
    config, sequences, tokens = STEPS[shape]
    step = Trained(router, config, DTYPES[precision], compile="off")

    def way(mode: kernels.Mode) -> Way:
        def run(inputs_BT: Tensor, targets_BT: Tensor) -> None:
            monkeypatch.setenv(kernels.VARIABLE, mode)
            step(inputs_BT, targets_BT)

        return run

    ways = {mode: way(mode) for mode in ("plain", "fast")}
    turns = in_turns(ways, MadeUpText(config.vocabulary, sequences, tokens))
    what = f"training step with plain kernels over fast ones, {router}, {shape}, {precision}"
    reach.shown(what, turns.ratios("plain", "fast"), "x")


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
