"""Rows of a suite that are models of transformers with a depth router: counts, decoding, bad input, and
a suite end to end."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_suite import SUITE as MIXED

import modbench
from modbench.cli.main import main
from modbench.counting.counter import FlopCounter
from modbench.errors import UserError
from modbench.hf.models import model_of
from modbench.hf.routed import RoutedHubModel
from modbench.ledger import Workload
from modbench.ledger.flops import CONVENTIONS
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.model.shape import TRANSFORMERS, HubConfig
from modbench.records.run import Run
from modbench.records.store import read_suite
from modbench.sweep.rows import resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.wanted import expand

LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "sliding_window": None}
LATENT = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
SUITE = (
    MIXED.replace('"memory", ', "")
    + """[[schemes]]
label = "Llama-mod"
router = "mod"
model = { hf = "llama.json" }
options = { capacity = 0.25 }
"""
)
ROUTED = 'router = "mod"\nmodel'
#: A router whose number of selected tokens is fixed in training, and one whose scores decide it.
ROUTERS = [("mod", {"capacity": 0.25}), ("threshold_skip", {})]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(LLAMA | {"num_hidden_layers": 2})


def write(config: dict[str, Any]) -> None:
    Path("llama.json").write_text(json.dumps(config))


def runs(text: str = SUITE) -> dict[str, Run]:
    Path("suite.toml").write_text(text)
    return {wanted.label: wanted.run for wanted in expand(resolve(load_suite("suite.toml")))}


def built(config: dict[str, Any], router: str, options: dict[str, Any]) -> RoutedHubModel:
    """A retrofitted model whose routers select some tokens."""
    shape = HubConfig(vocabulary=97, width=32, layers=4, config=config)
    model = model_of(shape, router, options, seed=1)
    assert isinstance(model, RoutedHubModel)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_a_suite_ranks_a_model_with_and_without_a_router_in_one_table() -> None:
    Path("suite.toml").write_text(SUITE)
    assert main(["run", "suite.toml", "--results", "out"]) == 0
    with open("out/mixed/leaderboard.csv") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert {label: row["router"] for label, row in rows.items()} == {
        "vanilla": "vanilla",
        "mod": "mod",
        "Llama": TRANSFORMERS,
        "Llama-mod": "mod",
    }
    assert len({row["comparison"] for row in rows.values()}) == 1
    for label, row in rows.items():
        assert 0.9 < float(row["budget_spent"]) <= 1, label
        assert float(row["heldout_loss"]) > 0
    assert float(rows["Llama-mod"]["kv_cache_share"]) < 1.0
    (audit,) = (
        audit
        for audit in read_suite(Path("out/mixed")).audits.values()
        if audit.scheme["router"]["name"] == "mod" and "config" in audit.scheme["model"]
    )
    verdicts = {finding.name: finding.verdict for finding in audit.audit}
    passed = {name for name, verdict in verdicts.items() if verdict == "passed"}
    assert passed == {"causal", "batch-invariant", "decode parity", "count"}
    assert "failed" not in verdicts.values()
    model, tokenizer = modbench.load("out/mixed/Llama-mod")
    assert isinstance(model, RoutedHubModel)
    with torch.no_grad():
        text_BT = torch.tensor([tokenizer.encode("Some text")])
        assert model(text_BT, Context(selection="causal")).isfinite().all()


def counted(model: RoutedHubModel, tokens_BT: Any, phase: Any, context: Context) -> dict[str, int]:
    """Ledger minus counter of a pass, by convention."""
    past = () if context.cache is None else tuple(context.cache.read)
    model.train(phase == "train")
    with FlopCounter() as counter, torch.set_grad_enabled(phase == "train"):
        loss = model(tokens_BT, context).logsumexp(-1).mean()
        if phase == "train":
            (loss + context.trace.auxiliary_loss()).backward()
    workload = Workload(
        lengths=tuple(context.lengths(tokens_BT)),
        phase=phase,
        past=past,
        counts=context.trace.counts,
        checkpoint=context.checkpoint,
        padding=True,
    )
    ledger = model.ledger(workload)
    return {name: ledger.total(name) - counter.ledger.total(name) for name in CONVENTIONS}


@pytest.mark.parametrize(("router", "options"), ROUTERS)
@pytest.mark.parametrize("config", [LLAMA, EXPERTS, LATENT], ids=lambda config: config["model_type"])
def test_the_closed_form_is_what_is_counted(
    config: dict[str, Any], router: str, options: dict[str, Any]
) -> None:
    model = built(config, router, options)
    tokens_BT = torch.randint(97, (3, 23))
    padded_B = torch.tensor([23, 16, 9])
    cache = Cache(3)
    cases: dict[str, tuple[Any, Any, Context]] = {
        "train": (tokens_BT, "train", Context()),
        "recompute": (tokens_BT, "train", Context(checkpoint=True)),
        "padded": (tokens_BT, "train", Context(lengths_B=padded_B)),
        "causal": (tokens_BT, "forward", Context(selection="causal")),
        "padded causal": (tokens_BT, "forward", Context(selection="causal", lengths_B=padded_B)),
        "cached": (
            tokens_BT[:, :9],
            "forward",
            Context(selection="causal", cache=cache, lengths_B=torch.tensor([9, 5, 7])),
        ),
        "further": (tokens_BT[:, 9:13], "forward", Context(selection="causal", cache=cache)),
        "token": (tokens_BT[:, 13:14], "forward", Context(selection="causal", cache=cache)),
    }
    wrong = {}
    for name, (given_BT, phase, context) in cases.items():
        difference = counted(model, given_BT, phase, context)
        assert {layer for layer, what in context.trace.counts if what == "depth"} == {1, 3}
        if any(difference.values()):
            wrong[name] = difference
    assert not wrong
    assert model.flops_source == "closed form"


@pytest.mark.parametrize(("router", "options"), ROUTERS)
def test_decoding_with_our_cache_gives_what_one_pass_gives(router: str, options: dict[str, Any]) -> None:
    model = built(LLAMA, router, options).double().eval()
    tokens_BT = torch.randint(97, (3, 23))
    cache = Cache(3)
    with torch.no_grad():
        whole_BTV = model(tokens_BT, Context(selection="causal"))
        steps = [
            model(part_BT, Context(selection="causal", cache=cache))
            for part_BT in tokens_BT.split([10] + [1] * 13, dim=1)
        ]
    torch.testing.assert_close(torch.cat(steps, 1), whole_BTV, rtol=1e-9, atol=1e-9)
    stored = [sum(cache.lengths(layer)) for layer in range(4)]
    assert stored[0] == stored[2] == tokens_BT.numel()
    assert 0 < stored[1] < tokens_BT.numel()
    # What is selected everywhere has keys in all four layers: 2 heads of 8, in float64.
    assert model.kv_bytes_per_token() == 4 * 2 * 2 * 8 * 8


def test_auxiliary_losses_and_selections_are_in_the_trace_of_the_context() -> None:
    model = built(LLAMA, "mod", {"capacity": 0.25}).train()
    context = Context(lengths_B=torch.tensor([23, 9]))
    model.loss(tokens_BT := torch.randint(97, (2, 23)), tokens_BT, context)
    assert context.trace.counts == {(1, "depth"): (6, 3), (3, "depth"): (6, 3)}
    auxiliary = context.trace.auxiliary_loss()
    assert isinstance(auxiliary, torch.Tensor)
    assert auxiliary.item() > 0
    nominal = model.nominal_counts(Workload(lengths=(23, 9)))
    assert nominal == context.trace.counts
    even = Context(selection="causal", forced_balance=True)
    model(tokens_BT, even)
    assert even.trace.counts == {(1, "depth"): (6, 6), (3, "depth"): (6, 6)}


def test_equal_arguments_give_equal_bits_and_the_original_keeps_its_weights() -> None:
    shape = runs()["Llama-mod"].model
    first, second = (model_of(shape, "mod", {"every": 2}, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    dense = model_of(shape, TRANSFORMERS, {}, seed=3).state_dict()
    assert all(torch.equal(value, first[name]) for name, value in dense.items())
    assert {name for name in first if name not in dense} == {
        name for name in first if "depth_router" in name
    }


def test_a_key_holds_the_router_its_options_and_the_config() -> None:
    stated = runs()
    run = stated["Llama-mod"]
    assert (run.router.name, run.router.options["capacity"]) == ("mod", 0.25)
    assert isinstance(run.model, HubConfig)
    assert Run.of(json.loads(json.dumps(run.as_json()))).key == run.key
    others = runs(SUITE.replace("capacity = 0.25", "capacity = 0.5"))
    assert others["Llama-mod"].key != run.key
    assert others["Llama"].key == stated["Llama"].key


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (ROUTED, ROUTED.replace('"mod"', '"vanilla"'), "router 'vanilla' is no DepthRouter"),
        ("capacity = 0.25", 'residual = "full"', "use residual = 'delta'"),
        ("capacity = 0.25", "every = 3", "no layer of 2 is routed"),
    ],
)
def test_a_router_that_can_not_be_used_is_refused_before_anything_runs(
    old: str, new: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in SUITE
    text = SUITE.replace(old, new)
    if old == ROUTED:  # which have no capacity
        text = text.replace("options = { capacity = 0.25 }", "")
    Path("suite.toml").write_text(text)
    assert main(["run", "suite.toml", "--results", "out"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model_type": "olmo2"}, "model_type 'olmo2': the FLOPs of its selected tokens have no closed"),
        (
            {"model_type": "gpt2", "n_embd": 32, "intermediate_size": None, "num_key_value_heads": None},
            "layers of GPT-2 have no positions .* a model of deepseek_v3, gemma",
        ),
        ({"model_type": "mistral", "sliding_window": 8}, "layer 1, which has a sliding window of 8"),
    ],
)
def test_a_model_that_can_not_be_routed_is_refused_by_name(changed: Any, sentence: str) -> None:
    write({**LLAMA, "num_hidden_layers": 2, **changed})
    with pytest.raises(UserError, match=sentence):
        runs(SUITE.replace('[[schemes]]\nlabel = "Llama"\nmodel = { hf = "llama.json" }\n', ""))
