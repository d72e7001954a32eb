"""The architecture: which folder may import which, no circles, and what an import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modbench

PACKAGE = Path(modbench.__file__).parent

#: What each folder or top-level file may import besides itself, from the bottom up.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "shipped": set(),
    "typed": {"errors"},
    "ledger": set(),
    "analysis": {"errors"},
    "counting": {"errors", "ledger"},
    "kernels": {"errors", "ledger"},
    "model": {"errors", "typed", "ledger", "counting", "kernels"},
    "routing": {"errors", "typed", "ledger", "counting", "kernels", "model"},
    "routers": {"errors", "typed", "ledger", "counting", "model", "routing"},
    "hf": {"errors", "typed", "ledger", "counting", "model", "routing", "data"},
    "accounting": {"errors", "typed", "ledger", "counting", "model", "routing", "hf"},
    "plan": {"errors", "typed", "ledger", "counting", "kernels", "model", "routing", "hf", "accounting"},
    "data": {"errors", "typed"},
    "train": {"errors", "typed", "ledger", "counting", "model", "routing", "hf", "accounting", "data"},
}
#: Of the rooms above `errors`, `typed` and `analysis`, records import the configurations only.
BELOW["records"] = {"errors", "typed", "analysis", "model", "data", "train"}
BELOW["report"] = {"errors", "analysis", "records", "shipped"}
BELOW["trained"] = BELOW["train"] | {"train", "records", "hf"}
BELOW["audit"] = BELOW["train"] | {"train", "records"}
_MEASURED = BELOW["trained"] | {"trained", "kernels", "analysis"}
BELOW["evaluate"] = _MEASURED
BELOW["measure"] = _MEASURED | {"audit", "evaluate"}
BELOW["timing"] = _MEASURED | {"audit", "measure", "plan"}
BELOW["sweep"] = _MEASURED | {"audit", "evaluate", "measure", "plan", "report", "timing"}
BELOW["sweep"] |= {"shipped", "__version__"}
BELOW["submission"] = BELOW["report"] | {"report", "routing", "sweep"}
BELOW["cli"] = BELOW["sweep"] | {"sweep", "hf", "submission"}
BELOW["__main__"] = {"cli", "errors"}
#: Opened by any file for its names; it imports nothing when it is loaded.
BELOW["__init__"] = {"counting", "accounting", "hf", "ledger", "report", "routing", "trained"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(file: Path) -> set[str]:
    """Dotted names inside modbench that ``file`` imports anywhere, `TYPE_CHECKING` blocks included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: a relative import"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("modbench"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("modbench.") for name in found if name.startswith("modbench.")}


def folder_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_folder_has_its_place() -> None:
    assert {folder_of(file) for file in FILES} == set(BELOW)


@pytest.mark.parametrize("folder", BELOW)
def test_imports_go_one_way(folder: str) -> None:
    for file in FILES:
        if folder_of(file) == folder:
            above = {name.split(".")[0] for name in imports_of(file)} - BELOW[folder] - {folder}
            assert not above, f"{file.relative_to(PACKAGE)} imports {above}"


def test_no_folder_is_below_itself() -> None:
    for folder, below in BELOW.items():
        assert folder not in set[str]().union(*(BELOW.get(name, set()) for name in below))


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
        for file in FILES
    }
    edges = {}
    for module, file in modules.items():
        named = imports_of(file)
        # `from modbench.a.b import c` names a module a.b.c, or something inside a.b.
        edges[module] = {name if name in modules else name.rpartition(".")[0] for name in named} & set(
            modules
        ) - {module}
    while leaves := {module for module, others in edges.items() if not others & edges.keys()}:
        edges = {module: others for module, others in edges.items() if module not in leaves}
    assert not edges, f"a circle among {sorted(edges)}"


#: What `modbench.cli` and closed forms need no GPU library for.
_LIGHT = ["torch", "numpy", "pandas", "lm_eval", "transformers"]
_FORM = "import modbench.hf.families as f, modbench.ledger as l; "
_FORM += "f.family_ledger({'model_type': 'llama'}, l.Workload.uniform(1, 8, 'train'))"
_COMMANDS = (
    "import importlib, pkgutil, modbench.cli as cli; "
    "[importlib.import_module(f'modbench.cli.{of.name}') for of in pkgutil.iter_modules(cli.__path__)]"
)
_FIT = "from modbench.cli.main import main; main(['fit', 'points.csv', '--fit', 'parabola'])"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import modbench", [*_LIGHT, "seaborn", "tyro"]),
        ("from modbench.cli.main import main; main(['--help'])", [*_LIGHT, "seaborn", "scipy"]),
        ("from modbench.cli.main import main; main(['list', 'metrics'])", [*_LIGHT, "seaborn", "scipy"]),
        ("from modbench.cli.main import main; main(['docs', 'audit'])", _LIGHT),
        (_COMMANDS, ["torch", "lm_eval", "transformers"]),
        (_FIT, ["torch", "lm_eval", "transformers"]),
        (_FORM, _LIGHT),
        ("import modbench.records.store, modbench.report.table", [*_LIGHT, "scipy", "rich"]),
        ("import modbench.routing.registry as r; r.router_names()", ["torch", "numpy"]),
        ("import modbench.report.write, modbench.report.losses", ["torch", "lm_eval"]),
        ("import modbench.analysis.noise, modbench.analysis.items", ["torch", "lm_eval"]),
        ("import modbench.evaluate.tasks", [*_LIGHT, "datasets"]),
        ("import modbench.sweep.run", ["matplotlib", "seaborn", "pandas", "lm_eval"]),
        ("from modbench.sweep.suite import load_suite; load_suite('quick')", _LIGHT),
        ("import modbench.sweep.work", ["pandas", "seaborn", "lm_eval", "datasets", "tokenizers"]),
    ],
)
def test_a_command_and_an_import_load_no_more_than_they_need(
    code: str, absent: list[str], tmp_path: Path
) -> None:
    points = [f"{1e6 * 2**k},1e15,{3 + k**2 / 10}" for k in range(-2, 3)]
    (tmp_path / "points.csv").write_text("\n".join(["size,flops,loss", *points]))
    code += f"; import sys; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"
