"""Converts a trained model of transformers to a routed one and trains it, from the model as it was: by
top-k the capacity falls from 1 to its value (MoDification, Zhang et al. 2024, arXiv 2410.14268), a
threshold begins where nearly all tokens are selected. The causal rule learns meanwhile.

B sequences, T tokens, N tokens of text.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.counting.counter import FlopCounter
from modbench.data.batches import Batches
from modbench.data.config import DataConfig
from modbench.data.corpus import read_corpus
from modbench.errors import UserError
from modbench.hf.families import load_config
from modbench.hf.folder import load_folder, load_tokenizer
from modbench.hf.retrofit.apply import receipt, retrofit, router_of, upcycle
from modbench.hf.retrofit.build import routers_of
from modbench.model.trace import Trace
from modbench.routing.expert_router import ExpertScheme, RoutedExperts
from modbench.routing.registry import preset_options, router_class
from modbench.routing.scorer import LinearScorer
from modbench.routing.threshold_router import ThresholdRouter
from modbench.typed import Count, Natural, Part, Positive, check_type

#: Share of tokens that a threshold selects at first; all of them would need an infinite bias.
_NEARLY_ALL = 1 - 1e-4
#: Held-out sequences scored before and after: a sample, since it is no measurement of a table.
_HELDOUT = 32
_BUILT_IN = "pypi-en-v1"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The settings of a conversion. Raise a `UserError` for a field out of range."""

    router: str = "mod"  #: depth router, or router of experts
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: Positive  #: training FLOPs, as counted
    train: Literal["router", "all"] = "all"  #: parameters that are trained
    anneal: Part = 0.5  #: fraction of the budget in which the capacity falls
    learning_rate: Positive | None = None  #: peak; None: 1e-4 for all parameters, 1e-3 for routers
    batch: Count = 8  #: sequences in a step
    sequence: Count = 256  #: tokens of a sequence
    seed: Natural = 0

    def __post_init__(self) -> None:
        for name, hint in type(self).__annotations__.items():
            if name not in ("router", "options"):
                check_type(f"convert {name}", getattr(self, name), hint)

    @property
    def peak(self) -> float:
        return self.learning_rate or (1e-4 if self.train == "all" else 1e-3)


def convert(
    folder: Path,
    conversion: Conversion,
    data: str,
    into: Path,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Convert the model in ``folder`` on the text ``data`` (a .txt or .jsonl file, or the name of the
    built-in corpus) and save it, with its tokenizer and receipt, into ``into``; return what was
    measured. Raise a `UserError` for a folder, router or text that can't be used, or a budget below one
    step; nothing is written then."""
    model, tokenizer = _loaded(folder)
    model.to(device)
    train, heldout = _batches(conversion, data, tokenizer, model)
    original = copy.deepcopy(model)
    before, _ = _scored(original, heldout)
    _route(model, conversion)
    targets = _capacities(model)
    start_from_original(model)
    written = receipt(original, model)
    del original
    say(f"receipt: largest difference of a logit {written['largest_logit_difference']:.1e}")
    steps, flops = _train(model, conversion, train, targets, say)
    after, share_routed = _scored(model, heldout)
    measured = {
        "train": conversion.train,
        "budget": conversion.budget,
        "flops": flops,
        "steps": steps,
        "heldout_loss_before": before,
        "heldout_loss": after,
        "share_routed": share_routed,
    }
    model.config.modbench = {**model.config.modbench, "conversion": measured}
    model.to("cpu").save_pretrained(into)
    tokenizer.save_pretrained(into)
    return {**measured, **written}


def start_from_original(model: Any) -> None:
    """Set the routers so that their training starts from what the model computed: gates of 1 where a
    score of 0 makes one, and thresholds that nearly all tokens reach."""
    with torch.no_grad():
        for part in routers_of(model):
            scorer = part.router
            if not isinstance(scorer, LinearScorer):
                continue
            one = part.options.applied_gate(torch.zeros(1, 1))
            if part.decides and isinstance(getattr(scorer, "bias", None), Tensor):
                scorer.bias.fill_(NormalDist().inv_cdf(_NEARLY_ALL))  # type: ignore[operator,union-attr]
            elif bool((one == 1).all()):
                scorer.weight.zero_()


def _loaded(folder: Path) -> tuple[Any, Any]:
    if "quantization_config" in load_config(folder):
        raise UserError(
            f"folder {folder} has quantised weights, which can't be trained; give the original model"
        )
    return load_folder(folder, dtype=torch.float32), load_tokenizer(folder)


def _route(model: Any, conversion: Conversion) -> None:
    name, preset = preset_options(conversion.router)
    options = {**preset, **conversion.options}
    if issubclass(router_class(name), ExpertScheme):
        upcycle(model, router=name, seed=conversion.seed, **options)
        return
    if name == "mod" and options.get("scores", "learned") == "learned":
        options.setdefault("gate", "scaled_sigmoid")  # 1 at a score of 0
    retrofit(model, router_of(name, options), seed=conversion.seed)


def _capacities(model: Any) -> dict[Any, float]:
    """Return the routed parts whose capacity is annealed, and their capacity: none if a threshold or
    each token decides."""
    parts: list[Any] = [part for part in routers_of(model) if not part.decides]
    for part in model.modules():
        if isinstance(part, RoutedExperts) and isinstance(part.options, ThresholdRouter):
            parts.append(part)
    return {part: part.options.capacity for part in parts}


def _set_capacities(targets: Mapping[Any, float], progress: float) -> None:
    """Set each capacity at ``progress``, from 0 to 1, between all tokens and its target."""
    for part, target in targets.items():
        full = part.options.experts if isinstance(part, RoutedExperts) else 1
        capacity = round(full + (target - full) * progress, 6)
        part.options = replace(part.options, capacity=capacity)


def _train(
    model: Any,
    conversion: Conversion,
    batches: Batches,
    targets: Mapping[Any, float],
    say: Callable[[str], None],
) -> tuple[int, int]:
    """Train within the budget; return the number of steps and of FLOPs."""
    model.train()
    for name, parameter in model.named_parameters():
        routing = "depth_router." in name or "mlp.experts.router." in name
        parameter.requires_grad_(conversion.train == "all" or routing)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=conversion.peak, betas=(0.9, 0.95), weight_decay=0.0)
    budget = int(conversion.budget)
    spent = step = last = 0
    while not step or spent + last <= budget:
        done = spent / budget
        _set_capacities(targets, min(1.0, done / conversion.anneal))
        for group in optimizer.param_groups:
            group["lr"] = conversion.peak * _rate(done)
        inputs_BT, targets_BT = batches.step(step)
        ids_BT = torch.cat((inputs_BT, targets_BT[:, -1:]), 1).to(trained[0].device)
        with FlopCounter() as counter:
            loss = model(ids_BT, labels=ids_BT).loss
            loss.backward()
        last = counter.total_model
        if spent + last > budget:
            if step:  # its routers selected more tokens than those of the step before
                break
            raise UserError(
                f"budget {budget:.3g} is below the {last:.3g} FLOPs of one step; give --budget "
                f"{100 * last:.0e} or more for 100 steps, or a smaller --batch"
            )
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent += last
        step += 1
        if step & (step - 1) == 0:  # step 1, 2, 4, 8 and on
            auxiliary = sum(each.item() for each in model.routing.losses.values())
            say(
                f"step {step}: {spent:.2e} of {budget:.2e} FLOPs, cross-entropy "
                f"{loss.item() - auxiliary:.3f}, auxiliary losses {auxiliary:.3f}"
                + routed_in_words(_share_routed(model, ids_BT))
            )
    _set_capacities(targets, 1.0)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.eval()
    return step, spent


def _rate(done: float) -> float:
    """Return the factor on the learning rate: a short warm-up, then a cosine to a tenth."""
    if done < 0.05:
        return max(done, 0.005) / 0.05
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (done - 0.05) / 0.95)) / 2


def _batches(
    conversion: Conversion, data: str, tokenizer: Any, model: Any
) -> tuple[Batches, Batches | None]:
    """Return batches of the training text, and of the held-out text if it is long enough."""
    room = getattr(model.config, "max_position_embeddings", conversion.sequence)
    if conversion.sequence > room:
        raise UserError(f"sequence {conversion.sequence} is above the model's {room} positions")
    config = DataConfig() if data == _BUILT_IN else DataConfig(source="text", path=data)
    corpus = read_corpus(config)
    shape = {"sequence": conversion.sequence, "seed": conversion.seed}
    train = Batches(_ids(corpus.train, tokenizer), batch=conversion.batch, **shape)
    try:
        heldout = Batches(_ids(corpus.heldout, tokenizer), batch=1, **shape)
    except UserError:
        return train, None
    return train, heldout


def _ids(texts: Sequence[str], tokenizer: Any) -> np.ndarray:
    ids: list[int] = []
    for first in range(0, len(texts), 1000):  # in batches, which use all cores
        batch = list(texts[first : first + 1000])
        for row in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            ids += [*row, tokenizer.eos_token_id]
    return np.array(ids, dtype=np.int64)


@torch.no_grad()
def _scored(model: Any, batches: Batches | None) -> tuple[float | None, float | None]:
    """Return the validation loss under the causal rule, without auxiliary losses and in nats per token,
    and the share of tokens routed; None: no such text, and no layer with depth routing."""
    if batches is None:
        return None, None
    model.eval()
    device = next(model.parameters()).device
    losses, shares = [], []
    for step in range(min(_HELDOUT, batches.windows)):
        inputs_BT, targets_BT = (ids_BT.to(device) for ids_BT in batches.step(step))
        logits_BTV = model(inputs_BT, use_cache=False).logits
        losses.append(F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten()).item())
        shares.append(_share_routed(model, inputs_BT))
    known = [share for share in shares if share is not None]
    return sum(losses) / len(losses), sum(known) / len(known) if known else None


def _share_routed(model: Any, ids_BT: Tensor) -> float | None:
    """Return the share of ``ids_BT``, the tokens of the last pass, that a layer with depth routing
    processed, averaged over such layers; None: there is none."""
    counts = getattr(model, "routing", Trace()).counts
    processed = [sum(each) for (_, name), each in counts.items() if name == "depth"]
    return sum(processed) / (len(processed) * ids_BT.numel()) if processed else None


def routed_in_words(share: float | None) -> str:
    return "" if share is None else f", {share:.1%} of tokens routed"
