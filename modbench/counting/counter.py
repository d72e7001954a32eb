"""The closed-world FLOP counter: counts the ops that PyTorch dispatches.

It counts matmul FLOPs, 2 per multiply-accumulate. Every op has a formula, is known to contain no matmul,
or is an error: an unknown op never counts as zero, which is how other counters miss attention on CPUs
and grouped experts.
"""

import threading
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _current_autograd_node
from torch._C._autograd import _get_sequence_nr
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from modbench.counting.attention import FusedAttention, Pairs
from modbench.counting.checkpoint_flops import Functions, engine_runs_here, in_checkpoint, infers_shapes
from modbench.counting.dispatch import AT_WORK, Dispatch
from modbench.counting.formulas import Formula, register_flop_formula
from modbench.counting.vector_products import VectorProducts
from modbench.counting.zero_flop_ops import is_free
from modbench.errors import UserError
from modbench.ledger import CONVENTIONS, Direction, Flops, Ledger, labels
from modbench.ledger.labels import Label

__all__ = ["FlopCounter", "is_free", "register_flop_formula", "seen_conventions"]

#: A label, and the query-key pairs that are needed if it is an attention.
Region = tuple[Label, Pairs | None]
_OUTSIDE: Region = (Label(), None)
#: Ops on the meta device are shape inference if ops with values run next to them. Those cost a fraction
#: of the program then, even if its shapes are inferred several times. Below 1 % of what runs on the meta
#: device they are a remainder of a program on that device, such as rotary frequencies.
_REMAINDER = 100
#: Directions that only convention ``executed`` counts.
_EXECUTED = ("recompute", "update")


def seen_conventions(on: torch.device) -> tuple[str, ...]:
    """Return the conventions in which a count on the device ``on`` can equal a closed form. On a GPU
    ``executed`` cannot: which blocks its kernels skip is not visible."""
    return CONVENTIONS if on.type == "cpu" else ("model", "full")


def _from_torchscript(failure: BaseException | None) -> bool:
    """Return True for the error that TorchScript's interpreter makes of any error inside it."""
    return isinstance(failure, RuntimeError) and "TorchScript" in str(failure)


def _has_no_values(result: Any, arguments: dict[str, Any]) -> bool:
    """Return True for an op on the meta device or on fake tensors."""
    tensor = result
    if not isinstance(result, Tensor):
        leaves = tree_leaves((result, arguments))
        tensor = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
    return tensor is not None and (tensor.is_meta or isinstance(tensor, FakeTensor))


def _evaluated(
    op: str, formula: Formula, arguments: dict[str, Any], result: Any, pairs: Pairs | None
) -> Flops:
    if pairs is not None and isinstance(formula, FusedAttention):
        return formula.flops(arguments, pairs)
    flops = formula(arguments, result)
    if isinstance(flops, Flops):
        return flops
    if type(flops) is not int or flops < 0:
        raise UserError(
            f"the FLOP formula of op '{op}' gave {flops!r}; it must give a whole number, 0 or more"
        )
    return Flops(flops, flops) if pairs is None else pairs.split(flops)


class FlopCounter:
    """Counts the matmul FLOPs of any PyTorch code that runs inside it, forward and backward.

    >>> with FlopCounter() as counter:
    ...     model(x).sum().backward()
    >>> counter.total

    ``total`` (convention ``full``) counts attention by its full square; ``total_model`` by the query-key
    pairs it needs: the triangle of causal attention, what a mask or a block mask's rule allows. A mask
    on the meta device has no values, and all its pairs count (``unread_masks`` counts such calls). The
    backward pass of SDPA is twice its forward pass in both; neither includes recomputation by activation
    checkpointing. ``executed`` is what PyTorch's CPU kernels run, recomputation and what
    runs under the label ``optimizer`` included (`modbench.counting.attention.FusedAttention`). On the
    meta device attention is counted as on a CPU.

    Recomputation is what ``torch.utils.checkpoint`` runs again, and what the backward function of a
    `torch.autograd.Function` records and differentiates if its forward function ran the same
    (`modbench.counting.checkpoint_flops`). All else in a backward pass, such as a loss in a hook, counts
    as part of it.

    A counter sees what its own thread runs, with the threads in which autograd runs a backward pass on a
    GPU, and of several processes its own: collectives count 0, and the sum over all ranks is the whole.
    Next to ops with values those on the meta device or on fake tensors are shape inference and count 0.
    Code compiled by torch.compile runs uncompiled while any counter is at work
    (`modbench.counting.compiled`). A product written as pointwise multiplication and a sum counts 0, as
    does ``vecdot`` by a name imported from torch.linalg before; code outside PyTorch is not seen. A
    multiply-accumulate of complex numbers counts 2 in a product of matrices, and 6 in a convolution,
    which PyTorch runs as three real ones.

    Raise a `UserError` for an op without a formula (`register_flop_formula` adds one) and for compiled
    code that can't run uncompiled, again at the end if the program swallowed it; if a counter is entered
    while it is counting; at the end, if a thread that was started inside, or that a ThreadPoolExecutor
    had started before, ran a matmul which no counter of its own counts; from ``total_model`` and
    ``ledger`` for the backward pass of a masked attention, written in matmuls, whose forward pass was
    not counted."""

    def __init__(self) -> None:
        # The bool: on tensors without values.
        self._counted: dict[tuple[Label, Direction, str, bool], list[int]] = {}
        # (region, number of the next autograd node, running node) at the time of opening
        self._open: list[tuple[Region, int, Any]] = []
        self._region_of_node: dict[tuple[int, int], Region] = {}  # by thread and number
        self.functions = Functions()
        self.products = VectorProducts()
        self._mode = Dispatch(self)
        self._thread: int | None = None  # where it counts, while it does
        self._unseen_forward = False
        self._in_other_thread: str | None = None  # an op of a thread that works for this one
        self._refusal: Exception | None = None  # the last one, which the program may swallow
        #: Attention calls whose mask has no values; they are taken to need all pairs.
        self.unread_masks = 0

    @property
    def total(self) -> int:
        return sum(full for _, (_, full, _) in self._work())

    @property
    def total_model(self) -> int:
        self._check_pairs()
        return sum(model for _, (model, _, _) in self._work())

    @property
    def executed(self) -> int:
        return sum(executed for _, (_, _, executed) in self._work())

    @property
    def by_op(self) -> dict[str, int]:
        """FLOPs by op, full square."""
        sums: dict[str, int] = {}
        for (_, direction, op, _), (_, full, _) in self._work():
            if direction not in _EXECUTED:
                sums[op] = sums.get(op, 0) + full
        return sums

    @property
    def ledger(self) -> Ledger:
        """The counted FLOPs by (layer, component, direction), under the labels of
        `modbench.ledger.component`; ops outside all labels are component ``other``."""
        self._check_pairs()
        return Ledger.sum(
            Ledger({(label.layer, label.component, direction): Flops(*flops)})
            for (label, direction, _, _), flops in self._work()
        )

    def _work(self) -> list[tuple[tuple[Label, Direction, str, bool], list[int]]]:
        """Return what was counted, without shape inference."""
        executed = [0, 0]
        for (*_, no_values), (_, _, flops) in self._counted.items():
            executed[no_values] += flops
        all_of_it = executed[False] * _REMAINDER < executed[True]
        return [item for item in self._counted.items() if all_of_it or not item[0][-1]]

    def under(self, convention: str) -> int:
        """The total as ``convention`` counts it."""
        totals = {"model": "total_model", "full": "total", "executed": "executed"}
        return int(getattr(self, totals[convention]))

    def __enter__(self) -> "FlopCounter":
        if self._thread is not None:
            raise UserError(
                "this FlopCounter is counting already, and would count all twice; take another one, or "
                "enter it again when it has ended"
            )
        AT_WORK.begin()
        self._thread = threading.get_ident()
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
        self._thread = None
        AT_WORK.end()
        refusal, self._refusal = self._refusal, None
        failure = error[1] if error else None
        op, self._in_other_thread = self._in_other_thread, None
        if refusal is not None and (failure is None or _from_torchscript(failure)):
            raise refusal from failure
        if refusal is not None and failure is not None and failure is not refusal:
            failure.add_note(f"FlopCounter had refused before: {refusal}")
        if op is not None and failure is None:
            raise UserError(
                f"another thread ran op '{op}', and a FlopCounter sees its own thread alone; run "
                "it in the thread that counts, or enter a FlopCounter in each thread"
            )

    def refusal(self, message: str) -> UserError:
        """Return the error that refuses an op. It is raised again at the end if the program swallows
        it."""
        error = UserError(message)
        self._refused(error)
        return error

    def _refused(self, error: Exception) -> None:
        for counter in (self, *labels.listeners()):  # one around this one lacks the op as well
            counter._refusal = error

    def see_other_thread(self, op: str) -> None:
        """Note an op of another thread that works for the counted code."""
        if self._thread is not None:
            self._in_other_thread = op

    def open(self, label: Label | None, pairs: Pairs | None = None) -> None:
        """Begin a region: forward ops belong to ``label`` (None: the current label) and, if ``pairs`` is
        given, are attention that needs these of its query-key pairs."""
        node = _current_autograd_node()
        region = (self._region(node)[0] if label is None else label, pairs)
        self._open.append((region, _get_sequence_nr(), node))

    def close(self) -> None:
        """End the last region; the autograd nodes created in it stay assigned to it."""
        region, first, _ = self._open.pop()
        thread = threading.get_ident()
        for number in range(first, _get_sequence_nr()):
            # A label inside this one has closed already, and keeps its nodes.
            self._region_of_node.setdefault((thread, number), region)

    def _region(self, node: Any) -> Region:
        """Return the region of an op that runs now: in a backward pass that of its forward op, unless a
        region was opened in the backward pass itself."""
        if node is not None and not (self._open and self._open[-1][2] is not None):
            known = self._region_of_node.get(self.key(node))
            if known is not None:
                return known
        return self._open[-1][0] if self._open else _OUTSIDE

    def key(self, node: Any) -> tuple[int, int]:
        """The thread that created ``node``, and its number there. On a GPU a backward pass runs in a
        thread of autograd's own, where only checkpointing creates nodes and runs them."""
        thread = threading.get_ident()
        if thread != self._thread and self._thread is not None and not engine_runs_here():
            thread = self._thread
        return thread, node._sequence_nr()

    def see_softmax_backward(self) -> None:
        """Note a masked attention, written out in matmuls, whose forward pass was not counted."""
        node = _current_autograd_node()
        if node is None or node.name() != "SafeSoftmaxBackward0":
            return
        before = node.next_functions[0][0]
        if before is not None and before.name() == "AddBackward0":  # scores + mask
            self._unseen_forward |= self.key(node) not in self._region_of_node

    def _check_pairs(self) -> None:
        if self._unseen_forward:
            raise UserError(
                "the forward pass of a masked attention ran before FlopCounter began, so its pairs are "
                "unknown; run the forward pass inside, or use total and executed"
            )

    def add(
        self,
        op: str,
        formula: Formula,
        arguments: dict[str, Any],
        result: Any,
        created: tuple[int, int] | None = None,
    ) -> None:
        """Count an op that has just run. ``created``: the thread and number of the node that autograd
        made for it."""
        node = _current_autograd_node()
        label, pairs = region = self._region(node)
        thread = threading.get_ident() if self._thread is None else self._thread
        direction: Direction = "forward" if node is None else "backward"
        if (node is not None and in_checkpoint(thread)) or infers_shapes(thread):
            direction = "recompute"
        elif label.component == "optimizer":
            direction = "update"
        if node is not None and created is not None:
            self._region_of_node.setdefault(created, region)
        try:
            flops = _evaluated(op, formula, arguments, result, pairs)
        except Exception as error:
            self._refused(error)
            raise
        add = partial(self._add, label, op, _has_no_values(result, arguments))
        if self.functions.running:
            again = add if direction == "backward" else None
            self.functions.count(flops, arguments, created, again)
        add(direction, flops)

    def _add(self, label: Label, op: str, no_values: bool, direction: Direction, flops: Flops) -> None:
        counted = self._counted.setdefault((label, direction, op, no_values), [0, 0, 0])
        if direction not in _EXECUTED:
            counted[0] += flops.model
            counted[1] += flops.full
        counted[2] += flops.executed

    def see_multiplication(self, created: tuple[int, int] | None, result: Tensor) -> None:
        """Count a multiplication that has just run if it is a product of vectors."""
        node = _current_autograd_node()
        if self.products.include(node, None if node is None else self.key(node)):
            if created is not None:
                self.products.differentiate(created)
            self.add("aten::mul", lambda arguments, result: 2 * result.numel(), {}, result, created)
