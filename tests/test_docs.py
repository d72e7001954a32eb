"""The pages under docs/: snippets run as printed, links lead somewhere, each says what it is for."""

import re
import shlex
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest

from modbench.cli.main import COMMANDS, main
from modbench.records.result import results_of
from modbench.records.store import read_suite

DOCS = Path(__file__).parent.parent / "docs"
GUIDE = (DOCS / "writing_a_router.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


IMPORTS = """from dataclasses import dataclass

import torch
from torch import nn

from modbench import DepthRouter, register_router


"""


def audited(source: str) -> int:
    """Save ``source`` under a name that no other test uses; return the audit's exit code."""
    (name,) = re.findall(r'@register_router\("(\w+)"\)', source)
    Path(f"{name}_of_the_guide.py").write_text(source.replace(f'"{name}"', f'"{name}_of_the_guide"'))
    name = f"{name}_of_the_guide"
    return main(["audit", name, "--plugin", f"{name}.py", "--layers", "2", "--sequence", "64"])


def test_the_router_of_the_guide_is_an_example() -> None:
    _, second, *_ = blocks("python")
    assert (DOCS.parent / "examples" / "hash_router.py").read_text().endswith(f"\n\n\n{second}")


def test_the_router_that_leaks_is_found_and_passes_without_its_selection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = IMPORTS + blocks("python")[-1]
    assert audited(source) == 1
    failed = re.findall(r"^FAILED (\d+) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert {"1", "3"} <= set(failed)
    assert audited(source[: source.index("    def selected")].replace('"leaky"', '"repaired"')) == 0


def test_the_state_of_the_guide_passes_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = (
        IMPORTS
        + """@register_router("stateful")
@dataclass(frozen=True, kw_only=True)
class Stateful(DepthRouter):
    capacity: float = 0.5

    def scorer(self, model):
        scorer = nn.Sequential(nn.Linear(model.width, 1), nn.Flatten(-2))
        scorer.register_buffer("threshold", torch.zeros(()))
        return scorer

    def gate(self, scores_BT):
        return scores_BT.sigmoid()

"""
    )
    assert audited(source + blocks("python")[2]) == 0


def test_the_capacities_per_layer_of_the_guide_pass_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert audited(IMPORTS + blocks("python")[0]) == 0


def test_every_method_of_the_guide_is_one_of_the_base_classes() -> None:
    from modbench import DepthRouter, ExpertRouter

    _, depth, experts = re.split(r"^## .*`(?:DepthRouter|ExpertRouter)`$", GUIDE, flags=re.MULTILINE)
    for text, base in ((depth, DepthRouter), (experts, ExpertRouter)):
        rows = re.findall(r"^\| `(\w+)\(([\w, ]*)\)`", text, flags=re.MULTILINE)
        assert len(rows) >= 6
        for name, arguments in rows:
            code = getattr(base, name).__code__
            assert ", ".join(code.co_varnames[1 : code.co_argcount]) == arguments, name


#: All pages.
PAGES = [*DOCS.glob("*.md"), *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md"))]


def test_every_link_of_every_page_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            of_site = link.startswith(("http", "../../actions/"))
            assert of_site or (page.parent / link).exists(), (page.name, link)


def test_every_anchor_of_every_page_exists() -> None:
    for page in PAGES:
        for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            target = page.parent / path if path else page
            assert anchor in anchors(target.read_text()), (page.name, path, anchor)


def anchors(text: str) -> set[str]:
    """The anchors of the headings of ``text``."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    named = re.findall(r'<a id="([\w-]+)"></a>', text)
    headings = [re.sub(r"<[^>]*>", "", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings} | {*named}


def code_of(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def test_the_snippets_of_the_page_on_counting_run_as_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = []
    for code in code_of("counting.md", "python"):
        exec(code, {})
        said.append(capsys.readouterr().out.splitlines())
    (counted, _), (mixed,), (pooled,), (mfu,), (closed,), (per_token,) = said
    assert counted.split() == [str(2 * 2 * 8 * 64 * 64)] * 3
    assert mixed == str(2 * 8 * 64 * 4)
    assert pooled == "0"
    assert re.fullmatch(r"MFU \d+\.\d\d%", mfu)
    assert int(closed) > 1e12
    assert float(per_token) > 1e9


def test_the_commands_of_the_page_on_counting_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text('{"model_type": "llama"}')
    source = (DOCS.parent / "examples" / "mlp_mod.py").read_text()
    Path("my_router.py").write_text(source.replace('"mlp_mod"', '"mlp_mod_of_counting"'))
    commands = [line for block in code_of("counting.md", "sh") for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert "200 FLOP counts equal" in capsys.readouterr().out  # 5 shapes, 4 phases, 10 conventions


def test_no_command_of_a_page_writes_to_tracked_results() -> None:
    for page in DOCS.glob("*.md"):
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.splitlines():
                if re.search(r"modbench (run|time) ", line):
                    assert "--results my-results" in line, (page.name, line)


def test_every_file_that_a_page_names_exists() -> None:
    for page in PAGES:
        for path in re.findall(
            r"`((?:modbench|tests|suites|examples|tools)/[\w/.]+)`", page.read_text()
        ):
            if "NAME" not in path and "OP" not in path:
                assert (DOCS.parent / path).exists(), (page.name, path)


def test_extras_are_installed_in_one_way_from_the_clone() -> None:
    pages = [*DOCS.glob("*.md"), *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md"))]
    code = [*(DOCS.parent / "modbench").rglob("*.py")]
    text = "\n".join(path.read_text() for path in (*pages, *code))
    text = re.sub(r'"\s*\n\s*"', "", text)  # parts of one string of Python
    asked = re.findall(r".*(?:modbench|\.)\[(?:hf|track|ray|gpu|dev)\].*", text)
    assert len(asked) > 8
    assert [line for line in asked if not re.search(r"python -m pip install (-e )?'\.\[", line)] == []


def test_every_command_is_on_the_page_of_commands() -> None:
    rows = re.findall(r"^\| `modbench .*?\|", (DOCS / "commands.md").read_text(), flags=re.MULTILINE)
    rows = [name for row in rows for name in re.findall(r"`modbench ([\w-]+)", row)]
    assert set(rows) == set(COMMANDS)


def test_runs_repeated_on_another_processor_are_those_that_the_page_of_statistics_names() -> None:
    records = [
        results_of(read_suite(DOCS.parent / "results" / f"isoflop-cpu{end}")) for end in ("", "/again")
    ]
    first, again = ({result.key: result for result in side} for side in records)
    assert {result.scheme for result in again.values()} == {"vanilla"}
    losses = [[side[key].metrics["heldout_loss"] for key in again] for side in (first, again)]
    rms = fmean((one - other) ** 2 for one, other in zip(*losses, strict=True)) ** 0.5
    assert f"differ by {rms:.3f} nats" in (DOCS / "statistics.md").read_text()


def test_the_margin_of_confirm_is_worth_what_the_dense_curve_says() -> None:
    optima = pd.read_csv(DOCS.parent / "results/isoflop-cpu/optima.csv")
    dense = optima[(optima.scheme == "vanilla") & (optima.fit == "parabola")]
    parabola = np.polyfit(np.log(dense.budget), dense.loss, 2)
    slope = -np.polyval(np.polyder(parabola), np.log(3e13))
    worth = [f"{100 * part:.0f}" for part in (0.02 / slope, np.expm1(0.02 / slope))]
    assert f"{' to '.join(worth)} % of the training compute" in (DOCS / "method.md").read_text().replace(
        "\n", " "
    )
