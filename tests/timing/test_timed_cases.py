"""The cases of `modbench time` do what they say and spend the FLOPs they say.

B sequences, T tokens.
"""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from timed_made_up import subject

from modbench.counting.counter import FlopCounter
from modbench.ledger import CONVENTIONS, Workload
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.timing import benchmark_case, clock, footprint, stopwatch
from modbench.timing.benchmark_case import (
    BenchmarkCase,
    BenchmarkTarget,
    inference_cases,
    training_cases,
)
from modbench.timing.clock import balance, ceilings, measured_times
from modbench.timing.config import TimeConfig
from modbench.timing.stopwatch import Samples, Stopwatch


def full(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.full)


def all_cases(of: BenchmarkTarget, model: Decoder) -> list[BenchmarkCase]:
    return training_cases(model, of) + inference_cases(model, of)


@pytest.mark.parametrize(
    "router", [full("vanilla"), "mod", "token_choice", full("expert_choice"), full("relu_routing")]
)
def test_each_case_spends_the_nominal_flops(router: str) -> None:
    of = subject(router)
    model = of.build()
    names = []
    for case in all_cases(of, model):
        prepared = case.prepare()
        prepared.before()
        flops = case.flops(model, prepared.run())
        assert flops["realised"] == flops["nominal"] == flops["dispatched"]
        load = Workload.uniform(case.sequences, case.tokens, case.phase, case.past)
        assert flops["nominal"]["model"] == model.ledger(load).total("model")
        names.append(case.name)
    decoding = [f"decode after {past} x {n}" for n in (1, 3) for past in (8, 30)]
    assert names == ["forward", "train", "prefill 24 x 1", *decoding]


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"recompute": True}, {"optimizer": "muon"}])
def test_a_timed_steps_flops_are_those_counted(changes: dict[str, Any]) -> None:
    of = subject("token_choice")
    of = replace(of, train=replace(of.train, **changes))
    model = of.build()
    (case,) = (case for case in training_cases(model, of) if case.phase == "train")
    prepared = case.prepare()
    with FlopCounter() as counter:
        traces = prepared.run()
    flops = case.flops(model, traces)
    assert flops["realised"] == flops["nominal"] == flops["dispatched"]
    assert flops["nominal"] == {name: counter.under(name) for name in CONVENTIONS}


def test_decoding_goes_on_from_the_same_place_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject("mod", decode_past=[8], decode_batches=[2])
    model = of.build()
    (case,) = (case for case in inference_cases(model, of) if case.phase == "decode")
    read: list[list[int]] = []
    right = benchmark_case.read

    def watch(run: Any, tokens_BT: torch.Tensor, cache: Any, *rest: Any, **more: Any) -> Any:
        read.append(list(cache.read))
        return right(run, tokens_BT, cache, *rest, **more)

    prepared = case.prepare()
    monkeypatch.setattr(benchmark_case, "read", watch)
    for _ in range(2):
        prepared.before()
        prepared.run()
    assert read == [[past] * 2 for past in range(8, 16)] * 2


def test_decoding_computes_what_a_full_pass_would() -> None:
    of = subject("vanilla", decode_past=[8], decode_batches=[2])
    model = of.build()
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda module, given, out: seen.append(out))
    (case,) = (case for case in inference_cases(model, of) if case.phase == "decode")
    case.prepare().run()
    tokens_BT = benchmark_case.random_tokens(model, 2, 16)
    with torch.no_grad():
        whole_BTV = model(tokens_BT, Context(selection="causal"))
    assert torch.allclose(seen[-2], whole_BTV[:, -1:], atol=1e-5)


def test_training_takes_a_step() -> None:
    of = subject("token_choice")
    model = of.build()
    before = {name: value.clone() for name, value in model.named_parameters()}
    for case in training_cases(model, of):
        case.prepare().run()
        moved = [
            name for name, value in model.named_parameters() if not torch.equal(value, before[name])
        ]
        assert bool(moved) == (case.phase == "train")
        assert model.training == (case.phase == "train")
    assert set(moved) == set(before)


def test_balance_names_how_layers_routed() -> None:
    tokens_BT = torch.randint(97, (2, 32))
    traces = {}
    for router, forced in (("vanilla", True), ("mod", True), ("mod", False)):
        context = Context(forced_balance=forced)
        subject(router).build()(tokens_BT, context)
        traces[router, forced] = context.trace
    assert balance([traces["vanilla", True]]) == "nothing routed"
    assert balance([traces["vanilla", True], traces["mod", True]]) == "forced"
    assert balance([traces["mod", False]]) == "as routed"


@pytest.mark.parametrize(
    ("kind", "names"),
    [("training", ["forward", "train"]), ("inference", ["prefill 24 x 1", "decode after 8 x 1"])],
)
def test_all_cases_of_a_kind_are_timed_and_the_machine_monitored(
    kind: Literal["training", "inference"], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[dict[str, Any]] = []
    warm: list[float] = []

    def sampled(*given: Any, warm_up: float, **more: Any) -> Samples:
        warm.append(warm_up)
        return stopwatch.sampled(*given, **more)

    monkeypatch.setattr(clock, "sampled", sampled)
    of = subject("mod", decode_past=[8], decode_batches=[1], warm_up_seconds=2.0)
    found = measured_times(kind, of, 1, events.append)
    assert [case["name"] for case in found["cases"]] == names
    assert warm == [2.0 / 5] * 2
    assert all(len(case["seconds"]) == 3 and min(case["seconds"]) > 0 for case in found["cases"])
    assert [event["step"] for event in events] == [1, 2]
    assert events[-1]["steps"] == 2
    assert (found["balance"], found["compiled"]) == ("forced", False)
    assert found["cases"][0]["joules"] is found["cases"][0]["gpu"] is None
    assert found["machine"]["nvml"] == "no GPU"


@pytest.mark.parametrize(("asked", "compiled"), [("on", True), ("off", False), ("auto", False)])
def test_training_is_compiled_where_it_is_asked_for(
    asked: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def compile(function: Any, *, dynamic: bool) -> Any:
        assert not dynamic

        def run(*given: Any) -> Any:
            ran.append(function.__qualname__.rpartition("<locals>.")[2])
            return function(*given)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    of = subject("mod", compile=asked, prefill=[24, 8], decode_batches=[1], decode_past=[8])
    model = of.build()
    expected = {"forward": ["logits"], "train": ["losses"]}
    for case in all_cases(of, model):
        prepared = case.prepare()
        ran.clear()
        prepared.run()
        assert ran == (expected.get(case.phase, []) if compiled else [])


def test_ceilings_are_of_the_models_own_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modbench.timing.clock.COPIED", {"cpu": 2**16})
    found = ceilings(subject(), Stopwatch())
    sizes = {g["component"]: (g["rows"], g["inner"], g["columns"]) for g in found["gemm"]}
    assert sizes == {
        "attention.qkv": (64, 32, 96),
        "attention.out": (64, 32, 32),
        "mlp up": (64, 32, 128),
        "mlp down": (64, 64, 32),
        "head": (64, 32, 97),
    }
    assert {g["dtype"] for g in found["gemm"]} == {"float32"}
    assert min(g["flops_per_second"] for g in found["gemm"]) > 0
    assert found["copy_bytes_per_second"] > 0


@pytest.mark.parametrize("router", [full("vanilla"), "mod", full("token_choice")])
def test_memory_is_split_exactly(router: str) -> None:
    of = subject(router)
    measured = footprint.training_footprint(of)
    model = of.build()
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert measured["parameters"] == measured["gradients"] == weights
    steps = 4 * len(list(model.parameters()))  # AdamW counts the steps of each parameter
    assert measured["optimizer"] == 2 * weights + steps
    parts = ("parameters", "gradients", "optimizer")
    assert measured["peak"] == sum(measured[part] for part in (*parts, "activations"))


@pytest.mark.parametrize(
    ("router", "precision"),
    [
        ("vanilla", "float32"),
        full("vanilla", "bfloat16"),
        full("mod", "float32"),
        full("mod", "bfloat16"),
        full("mode_staged", "float32"),
        ("mode_staged", "bfloat16"),
    ],
)
def test_the_cache_is_counted_to_the_byte(router: str, precision: str) -> None:
    of = subject(router)
    if precision == "bfloat16":
        of = replace(of, dtype=torch.bfloat16)
    measured = footprint.inference_footprint(of)
    assert footprint.largest_prefill(of) == (3, 30)
    width = 4 if precision == "float32" else 2
    tokens = 30 if router == "vanilla" else (30 + 4) / 2
    assert measured["cache"] == 3 * tokens * 4 * 2 * 32 * width
    assert measured["parameters"] == width * sum(weight.numel() for weight in of.build().parameters())


def test_lengths_follow_from_the_sequence_unless_they_are_given() -> None:
    plain = TimeConfig().resolved(256)
    assert (plain.prefill, plain.decode_past) == ((64, 256), (32, 128, 256))
    assert TimeConfig(prefill=(7,)).resolved(256).prefill == (7,)
    assert TimeConfig().resolved(1).decode_past == (1,)
    assert "repetitions" not in plain.of_a_process()
