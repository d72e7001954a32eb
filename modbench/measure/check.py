"""The backend of ``modbench check``: a router's FLOPs, audit and first training steps, in under a minute
on two cores.

B sequences, T tokens, N tokens of text.
"""

import math
import os
import shlex
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch

from modbench.analysis.idle_layers import layer_line
from modbench.audit import Finding, findings, printed
from modbench.audit.warmed import warmed
from modbench.data.batches import Batches
from modbench.data.tokenizer import Tokenizer
from modbench.errors import UserError, known_names
from modbench.ledger import Phase, Workload
from modbench.measure.loss import heldout_loss, heldout_windows
from modbench.measure.routing import layer_measures
from modbench.model.config import ModelConfig
from modbench.model.sizes import SIZES
from modbench.routing.build import RoutedDecoder, build_model, outline
from modbench.routing.depth_router import DepthScheme
from modbench.routing.plugin_fault import authors_code
from modbench.routing.registry import build_router, load_plugin, plugin_file, preset_options
from modbench.routing.router import Router, overrides
from modbench.train.config import TrainConfig
from modbench.train.numerics import device, make_deterministic
from modbench.train.optimizer import build_optimizer
from modbench.train.step import training_step

SEQUENCE = 64  # `STEPS` steps of two models take seconds on two cores
PHASES: tuple[Phase, ...] = ("forward", "train")
STEPS = 20  # more would take longer, and a check does not rank
TRAIN = TrainConfig(sequence=SEQUENCE, batch=8)
#: Bytes of training text.
TEXT = 100_000
#: Tokens that the causal rule is scored on; more would take longer.
HELDOUT = 4096
#: Numbers of layers to try: some routers leave the first ones dense, or share them. With capacities of
#: their own, more than one layer is audited.
DEPTHS = (2, 4)


def run_check(target: str, name: str | None = None, *, options: Mapping[str, Any], seed: int = 0) -> int:
    """Check the router ``name`` of the plugin file ``target``, each of its routers, or the router called
    ``target``, and print what is found. Returns 0, or 1 if a probe failed or a loss is not finite.
    Raises UserError: an invalid file, name, preset, option or seed; or a router's code raises."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in [0, 2**32)")
    asked = _chosen(target, name)
    torch.set_num_threads(1)  # more threads slow tiny models down
    make_deterministic()
    chosen = {each: preset_options(each) for each in asked}
    routers = {
        each: build_router(plain, {**preset, **options}) for each, (plain, preset) in chosen.items()
    }
    passed: list[bool] = []
    for each, router in routers.items():
        if passed:
            print()
        is_default = not options and not chosen[each][1]
        passed.append(_passes(each, router, seed, is_default=is_default))
    return 0 if all(passed) else 1


def _passes(asked: str, router: Router, seed: int, *, is_default: bool) -> bool:
    """Print what is found about ``router``, which was ``asked`` for; return True if all is well."""
    print(f"{asked}: {', '.join(f'{k}={v}' for k, v in router.options().items()) or 'no options'}\n")
    config = _small(router)
    with authors_code(router, "a training step"):  # a router that does not run has no FLOPs to compare
        model = warmed(config, router.name, router.options(), seed, SEQUENCE)
    _print_costs(router)
    failed = _print_audit(model, seed)
    diverged = _print_training(config, router, seed)
    print()
    _print_next(router, failed, diverged, is_default=is_default)
    return not failed and not diverged


def _chosen(target: str, name: str | None) -> list[str]:
    """Names of the routers to check, maybe with a preset; a file is loaded first. Raises UserError: the
    file cannot be loaded, or does not register this one."""
    if not target.endswith(".py") and not Path(target).is_file():
        if name is not None:
            raise UserError(f"'{target}' is a router and no file; leave '{name}' out")
        return [target]
    names = load_plugin(target)
    print(f"{target} registers {', '.join(names)}")
    if name is not None and name.partition(":")[0] not in names:
        raise UserError(f"plugin {target} registers no '{name}'; {known_names(name, names)}")
    return names if name is None else [name]


def _print_costs(router: Router) -> None:
    """Print nominal FLOPs per token and parameters next to the dense model's."""
    size = SIZES["1M"]
    models = [outline(size.model, scheme) for scheme in (router, build_router("vanilla"))]
    print(_row("", "router", "dense") + f"{'ratio':>8}")
    costs: dict[str, list[float]] = {}
    for phase in PHASES:
        load = Workload.uniform(1, size.sequence, phase)
        flops = [model.train(phase == "train").ledger(load).total() / load.tokens for model in models]
        costs[f"{phase} FLOPs per token"] = flops
    costs["active parameters"] = [model.parameter_count("active") for model in models]
    costs["parameters"] = [model.parameter_count("total") for model in models]
    for words, (ours, theirs) in costs.items():
        print(_row(words, f"{ours:,.0f}", f"{theirs:,.0f}") + f"{ours / theirs:>8.3f}")
    print(
        f"nominal, {models[0].flops_source}: {size.model.layers} layers of width {size.model.width}, "
        f"{size.sequence} tokens, vocabulary {size.model.vocabulary:,}"
    )


def _row(*cells: str) -> str:
    return f"{cells[0]:<24}" + "".join(f"{cell:>14}" for cell in cells[1:])


def _small(router: Router) -> ModelConfig:
    """The smallest shape that ``router`` can build with a layer that differs from the dense model's.
    Raise a `UserError` if it can build none."""
    per_layer = isinstance(router, DepthScheme) and overrides(router, "capacity_of", DepthScheme)
    for layers in DEPTHS[1:] if per_layer else DEPTHS:
        config = ModelConfig(vocabulary=Tokenizer().vocabulary, width=64, heads=2, layers=layers)
        with suppress(UserError) if layers < DEPTHS[-1] else nullcontext():
            routed, dense = outline(config, router), outline(config, build_router("vanilla"))
            if str(routed.layers) != str(dense.layers):
                break
    return config


def _print_audit(model: RoutedDecoder, seed: int) -> list[Finding]:
    """Print each probe as it ends; return those that failed."""
    print(f"\naudit at {model.config.layers} layers of width {model.config.width}", flush=True)
    return [finding for finding in printed(findings(model, seed=seed)) if finding.failed]


def _print_training(config: ModelConfig, router: Router, seed: int) -> str:
    """Train the router and the dense model on the same batches and print their losses. Return what went
    wrong; empty if nothing did."""
    # A text that needs no network: the documentation that comes with Python.
    text = "\n\n".join(topics.values()).encode()[:TEXT]
    text_N = np.frombuffer(text, dtype=np.uint8)
    cut = len(text_N) - HELDOUT - 1
    batches = Batches(text_N[:cut], sequence=SEQUENCE, batch=TRAIN.batch, seed=seed)
    windows_WT = heldout_windows(text_N[cut:], sequence=SEQUENCE, tokens=HELDOUT)
    print(
        f"\n{STEPS} training steps of {TRAIN.batch} x {SEQUENCE} bytes of Python's documentation, nats"
        " per token"
    )
    curves, scores, layers = [], [], []
    for trained in (router, build_router("vanilla")):
        with authors_code(router, "a training step"):
            model = build_model(config, trained, seed).to(device())
            curves.append(_losses(model, batches))
        with authors_code(router, "a forward pass under the causal rule"):
            bytes_V = np.ones(config.vocabulary, dtype=np.int64)
            scored = heldout_loss(model, windows_WT, bytes_V, selection="causal")
            scores.append(scored.nats_per_token)
            layers += layer_measures(model, windows_WT)
    print(_row("", "router", "dense"))
    for step in (1, *range(5, STEPS + 1, 5)):
        print(_row(f"step {step}", *(f"{curve[step - 1]:.3f}" for curve in curves)))
    print(_row("held out, causal rule", *(f"{score:.3f}" for score in scores)))
    for entry in layers:
        print(layer_line(**entry))
    if math.isfinite(sum(curves[0]) + scores[0]):
        return ""
    return f"router '{router.name}': its loss is not finite after {STEPS} training steps"


def _losses(model: RoutedDecoder, batches: Batches) -> list[float]:
    """The training loss of each step."""
    optimizer = build_optimizer(model.train(), TRAIN)
    losses = []
    for step in range(STEPS):
        inputs_BT, targets_BT = (tokens_BT.to(device()) for tokens_BT in batches.step(step))
        loss, _ = training_step(model, optimizer, TRAIN, (inputs_BT, targets_BT), torch.float32)
        losses.append(loss.item())
    return losses


def _print_next(router: Router, failed: list[Finding], diverged: str, *, is_default: bool) -> None:
    """Print what to do next."""
    if failed:
        probes = ", ".join(f"{finding.probe} {finding.name}" for finding in failed)
        print(f"failed: {probes}; `modbench docs audit` explains each probe and the usual mistakes")
    if diverged:
        print(f"failed: {diverged}")
    if failed or diverged:
        print("next: fix it and check again; `modbench docs writing_a_router` has the contract")
        return
    file = plugin_file(router.name)
    if file is None:
        print("next: give it a row in a suite (suites/quick.toml is one) and call modbench run SUITE")
        return
    plugin = shlex.quote(os.path.relpath(file))
    print(f"next: modbench run quick --plugin {plugin} --only {router.name}")
    if not is_default:
        print("      that runs its defaults; options go into a suite's [[schemes]]")
