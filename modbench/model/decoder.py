"""The one decoder that all schemes share: embedding, a router's layers, norm, head.

B sequences, T tokens, D model width, V vocabulary.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from modbench.errors import UserError
from modbench.kernels.cross_entropy import cross_entropy, losses, recomputes_logits
from modbench.ledger import OUTSIDE, Counts, Ledger, Workload, component, matmul
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.init import normal_
from modbench.model.kernels import RMSNorm
from modbench.model.layer import Layer, with_upstream_grad
from modbench.model.linear import projected


class Decoder(nn.Module):
    """A causal language model over layers that are built already.

    ``identity``: what tells this model from others of the same shape, for caches that it fills.
    """

    def __init__(
        self, config: ModelConfig, layers: Iterable[Layer], identity: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        shape = {f"model {name}": value for name, value in asdict(config).items()}
        self.identity: Mapping[str, Any] = {**(identity or {}), **shape}
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.width, eps=config.norm_epsilon)
        self.head = None if config.tied_head else nn.Linear(config.width, config.vocabulary, bias=False)

    def initialise(self, seed: int) -> None:
        """First weights. The shared parts come out alike under every router."""
        normal_(self.embedding.weight, seed, "embedding")
        if self.head is not None:
            normal_(self.head.weight, seed, "head")
        for module in self.layers.modules():
            # Each module fills the parameters that are its own, from streams named after them.
            initialise = getattr(module, "initialise", None)
            if callable(initialise):
                initialise(seed)

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """Logits (B, T, V), or (B, 1, V) where the context wants those of the last tokens alone. Where
        something raises, the context's cache is left as it was.

        Raises:
            UserError: no tokens, or lengths that aren't theirs.
            ValueError: a cache under the training rule, which may look at tokens to come, or one of
                another model or of another number of sequences.
        """
        if context.cache is None:
            return self._logits(tokens_BT, context)
        mark = context.cache.mark()
        try:
            return self._logits(tokens_BT, context)
        except BaseException:
            # The layers that kept these tokens would show them to the next pass as earlier ones.
            context.cache.rewind(mark)
            raise

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, context: Context) -> Tensor:
        """Mean cross-entropy of ``targets_BT`` in nats, without auxiliary losses; all logits are never
        held together. The FLOPs are those of `forward` and its backward pass.

        Raises:
            UserError: as `forward`, or targets that aren't one of each token.
        """
        x_ND = self._normed(tokens_BT, context).flatten(0, 1)
        _check_targets(tokens_BT, targets_BT)
        return cross_entropy(x_ND, self._head(), targets_BT.flatten())

    @torch.no_grad()
    def losses(self, tokens_BT: Tensor, targets_BT: Tensor, context: Context) -> Tensor:
        """Cross-entropy of each token in nats, (B, T), in float32 or wider, without a gradient.

        Raises:
            UserError: as `loss`.
        """
        x_ND = self._normed(tokens_BT, context).flatten(0, 1)
        _check_targets(tokens_BT, targets_BT)
        return losses(x_ND, self._head(), targets_BT.flatten()).view_as(targets_BT)

    def _logits(self, tokens_BT: Tensor, context: Context) -> Tensor:
        x_BTD = self._normed(tokens_BT, context)
        with component("head"):
            return projected(x_BTD, self._head())

    def _head(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def _normed(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """What the head is given, (B, T, D)."""
        context.check(tokens_BT)
        x_BTD = self.embedding(tokens_BT)
        lengths = context.lengths(x_BTD) if context.cache is not None else []
        positions_BT, past = context.positions_BT, context.past
        if context.cache is not None:
            if context.selection != "causal":
                raise ValueError(f"selection '{context.selection}' with a cache; it must be 'causal'")
            context.cache.serve(self.identity, len(tokens_BT))
            positions_BT = context.cache.positions(tokens_BT.shape[1], tokens_BT.device)
            past = context.cache.read
        context = replace(context, tokens_BT=tokens_BT, positions_BT=positions_BT, past=past)
        for layer in self.layers:
            run = _checkpointed if context.checkpoint else _plain
            x_BTD = run(layer, x_BTD, context)
        if context.cache is not None:
            context.cache.advance(lengths)
        if context.logits == "last":
            x_BTD = _last(x_BTD, context)
        return self.norm(x_BTD)  # type: ignore[no-any-return]

    def ledger(self, workload: Workload) -> Ledger:
        """The closed form of what `forward` spends on ``workload``, and of the backward pass, where a
        gradient is needed: parameters that aren't trained, and what lies before the first that is, get
        none."""
        parts = []
        workload = replace(workload, input_gradient=self.embedding.weight.requires_grad)
        for number, layer in enumerate(self.layers):
            part = self.layer_ledger(number, workload)
            parts.append(part)
            takes: bool = layer.takes_gradient(workload)  # type: ignore[operator]
            if workload.checkpoint and (takes or any(way == "backward" for (_, _, way), _ in part)):
                parts.append(part.recomputed())
            if not workload.input_gradient:
                workload = workload.after(takes)
        head = self.embedding if self.head is None else self.head
        logits = matmul(
            with_upstream_grad(workload, self.norm),
            OUTSIDE,
            "head",
            rows=workload.scored,
            inner=self.config.width,
            columns=self.config.vocabulary,
            weight_gradient=head.weight.requires_grad,
        )
        parts.append(logits)
        learns = any(way == "backward" for (_, _, way), _ in logits)
        if learns and recomputes_logits(workload.scored, self.config.vocabulary):
            parts.append(logits.recomputed())
        return Ledger.sum(parts)

    def parameter_count(self, kind: Literal["total", "active"] = "total") -> int:
        """Trained parameters: all, or those that one token meets when it is routed everywhere it can
        be. The embedding counts whole in both, a tied head once, and so does what layers share: what of
        it is idle is idle once, as if a token met the same part of it in each of them.

        Raises:
            UserError: a layer says that a token meets more parameters than it has, or less than none.
        """
        total = _held(self)
        if kind == "total":
            return total
        active = total - self._idle()
        assert 0 <= active <= total
        return active

    def _idle(self) -> int:
        """Parameters that are not active, each once."""
        earlier: list[tuple[set[Tensor], int]] = []
        for number, active in enumerate(self.active_by_layer()):
            part, idle = self.layers[number], _held(self.layers[number]) - active
            # What is idle lies in the innermost part that says so: there two layers may meet.
            for inner in part.modules() if idle else ():
                says = callable(getattr(inner, "active_parameters", None))
                if says and _held(inner) - self.active_of(inner, number) == idle:
                    part = inner
            own = set[Tensor](part.parameters())
            met = [(others, known) for others, known in earlier if not own.isdisjoint(others)]
            shared = sum(p.numel() for p in own & set[Tensor]().union(*(others for others, _ in met)))
            earlier.append((own, max(0, idle - min(shared, sum(known for _, known in met)))))
        return sum(idle for _, idle in earlier)

    def layer_ledger(self, number: int, workload: Workload) -> Ledger:
        """The ledger of the layer at depth ``number``."""
        return self.layers[number].ledger(workload)  # type: ignore[no-any-return, operator]

    def layer_nominal_counts(self, number: int, workload: Workload) -> Counts:
        """The nominal counts of the layer at depth ``number``."""
        return self.layers[number].nominal_counts(workload)  # type: ignore[no-any-return, operator]

    def active_of(self, part: nn.Module, number: int) -> int:
        """Active parameters of ``part``, which belongs to the layer at depth ``number``."""
        return part.active_parameters()  # type: ignore[no-any-return, operator]

    def active_by_layer(self) -> list[int]:
        """What each layer's ``active_parameters`` says.

        Raises:
            UserError: as `parameter_count`.
        """
        return [self.active_of(layer, number) for number, layer in enumerate(self.layers)]

    def nominal_counts(self, workload: Workload) -> Counts:
        """What the layers promise of ``workload``, all together.

        Raises:
            UserError: a layer promises what is no count.
        """
        found: dict[tuple[int, str], tuple[int, ...]] = {}
        for number in range(len(self.layers)):
            found |= self.layer_nominal_counts(number, workload)
        return found


def _held(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _check_targets(tokens_BT: Tensor, targets_BT: Tensor) -> None:
    """Of too few targets, or of those of another order, a loss would come out, and be another."""
    kind = getattr(targets_BT, "dtype", type(targets_BT).__name__)
    if kind not in (torch.int32, torch.int64):
        raise UserError(f"targets are {kind}; they must be a tensor (B, T) of int32 or int64")
    if targets_BT.shape != tokens_BT.shape:
        raise UserError(
            f"targets are of shape {tuple(targets_BT.shape)} for tokens of shape "
            f"{tuple(tokens_BT.shape)}; give each token one"
        )


def _last(x_BTD: Tensor, context: Context) -> Tensor:
    """Each sequence's last real token, (B, 1, D)."""
    if context.lengths_B is None:
        return x_BTD[:, -1:]
    index_B11 = (context.lengths_B - 1)[:, None, None]
    return x_BTD.gather(1, index_B11.expand(-1, 1, x_BTD.shape[2]))


def _plain(layer: nn.Module, x_BTD: Tensor, context: Context) -> Tensor:
    if torch.compiler.is_compiling() and layer.has_data_dependent_shapes:
        return _as_written(layer, x_BTD, context)
    return layer(x_BTD, context)  # type: ignore[no-any-return]


@torch._disable_dynamo  # torch.compiler.disable would import it now
def _as_written(layer: nn.Module, x_BTD: Tensor, context: Context) -> Tensor:
    return layer(x_BTD, context)  # type: ignore[no-any-return]


def _checkpointed(layer: nn.Module, x_BTD: Tensor, context: Context) -> Tensor:
    """``layer`` with nothing kept for the backward pass but its input. The forward pass is run again as
    a whole, not up to the last tensor that is needed: that point differs from scheme to scheme."""
    with set_checkpoint_early_stop(False):
        return checkpoint(  # type: ignore[no-any-return]
            layer,
            x_BTD,
            context,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), context.trace.repeating()),
        )
