"""The backend of ``modbench audit``: audits a router with random weights on random text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from modbench.errors import UserError
from modbench.measure.audit import PROBES, Finding, findings
from modbench.measure.audit.finding import Subject
from modbench.model.config import ModelConfig
from modbench.model.sizes import ShapeOptions, Size
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router, load_plugin, preset_options
from modbench.train.config import TrainConfig
from modbench.train.loop import build_optimizer, training_step
from modbench.train.numerics import device, make_deterministic
from modbench.train.out_of_memory import failed_allocation, out_of_memory_sentence

#: Training steps before the audit, so that thresholds, biases and predictors have changed.
STEPS = 8
#: Small, since a few steps at the full rate teach a predictor to skip all tokens.
RATE = 1e-4
#: The odd shape of every audit, and the number of sequences at the length of the given size.
ODD, SEQUENCES = (3, 63), 4
#: The longest sequences of these training steps.
LONGEST = 64


def run_audit(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    plugins: Sequence[Path] = (),
    shape: ShapeOptions | None = None,
    seed: int = 0,
    format: Literal["table", "json"] = "table",
) -> int:
    """Audit the router ``name`` (``NAME`` or ``NAME:PRESET``) with ``options`` in a decoder of
    ``shape``, at 3 x 63 tokens and at 4 sequences of its length, on one thread. Prints a line per probe
    as it ends, or one JSON document. Returns 1 if a probe failed, else 0.

    Raises:
        UserError: invalid plugin, router, preset, option or shape; a router that cannot take a training
            step; or too little memory.
    """
    for plugin in plugins:
        load_plugin(plugin)
    router_name, chosen = preset_options(name)
    chosen |= options or {}
    size = (shape or ShapeOptions()).resolved()
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in [0, 2**32)")
    if size.sequence < 2:
        raise UserError(f"sequence is {size.sequence}; an audit needs 2 tokens or more")
    make_deterministic()
    found: list[Finding] = []
    with one_thread():
        model = _warmed(name, size, chosen, seed)
        if format == "table":
            print(f"{name}: {ODD[0]} x {ODD[1]} and {SEQUENCES} x {size.sequence} tokens", flush=True)
        try:
            for finding in findings(model, shapes=(ODD, (SEQUENCES, size.sequence)), seed=seed):
                found.append(finding)
                if format == "table":
                    print(line(finding), flush=True)
        except Exception as error:
            _raise_memory(error)
            raise
    failed = [finding for finding in found if finding.failed]
    if format == "json":
        document = {
            "router": router_name,
            "options": model.router.options(),
            "model": asdict(size.model),
            "sequence": size.sequence,
            "seed": seed,
            "passed": not failed,
            "probes": [asdict(finding) for finding in found],
        }
        print(json.dumps(document))
    return 1 if failed else 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: at the sizes of an audit, more are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _warmed(name: str, size: Size, options: Mapping[str, Any], seed: int) -> RoutedDecoder:
    """`warmed` on sequences of at most `LONGEST` tokens.

    Raises:
        UserError: the router cannot take a training step, or there is too little memory.
    """
    try:
        router = preset_options(name)[0]
        return warmed(size.model, router, options, seed, min(size.sequence, LONGEST))
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a router's own code runs here
        _raise_memory(error)
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"router '{name}' raised {type(error).__name__}: {reason} in a training step; fix its "
            "forward, or reject the options in __post_init__"
        ) from error


def _raise_memory(error: BaseException) -> None:
    allocation = failed_allocation(error)
    if allocation is not None:
        raise UserError(
            f"{out_of_memory_sentence(allocation)}; audit a smaller size or sequence"
        ) from error


def warmed(
    config: ModelConfig, name: str, options: Mapping[str, Any], seed: int, sequence: int
) -> RoutedDecoder:
    """Build a model and train it for a few steps on random tokens."""
    model = build_model(config, build_router(name, options), seed).to(device())
    train = TrainConfig(budget=1, learning_rate=RATE)
    optimizer = build_optimizer(model, train)
    subject = Subject(model, seed)
    for number in range(STEPS):
        text_BT = subject.tokens(SEQUENCES, sequence + 1, draw=1 + number)
        batch = text_BT[:, :-1], text_BT[:, 1:]
        training_step(model.train(), optimizer, train, batch, torch.float32)
    return model.eval()


def line(finding: Finding) -> str:
    """Format a finding as one line with aligned columns."""
    wide = max(len(probe.name) for probe in PROBES)
    unranked = ", not ranked" if finding.ranks and finding.failed else ""
    verdict = "FAILED" if finding.failed else finding.verdict
    return f"{finding.probe:>2}  {finding.name:<{wide}}  {verdict:<9}  {finding.figure}{unranked}"
