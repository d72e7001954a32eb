"""`modbench list` with routers of installed packages, some of them broken."""

from pathlib import Path

import pytest
from small_suite import install, modbench_says

ROUTER = '''"""Selects tokens by luck. It learns nothing."""
from dataclasses import dataclass
from modbench import DepthRouter, register_router

@register_router("{}")
@dataclass(frozen=True, kw_only=True)
class Luck(DepthRouter):
    pass
'''
#: Code of the package of a router, and its description in the list.
PACKAGES = {
    "fine": (ROUTER.format("fine"), "Selects tokens by luck"),
    "absent": (
        "import no_such_package",
        "BROKEN: its package raised ModuleNotFoundError: No module named 'no_such_package' in the "
        "import of absent",
    ),
    "misnamed": (
        ROUTER.format("another"),
        "BROKEN: its entry point misnamed does not register that name; decorate the class with "
        "@register_router('misnamed')",
    ),
    "leaves": ("import sys; sys.exit(0)", "BROKEN: its package raised SystemExit: 0 in the import"),
    "hyphen": ("", "BROKEN: its package raised ModuleNotFoundError: No module named 'my-package'"),
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that processes find."""
    folder = tmp_path / "packages"
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    return folder


def set_entry_point(packages: Path, package: str, line: str) -> None:
    points = packages / f"{package}-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[modbench.routers]\n{line}\n")


def sentences(out: str) -> dict[str, str]:
    """The description of each router in the list."""
    lines = out.splitlines()[1:]
    return {name.strip(): text.strip() for name, text in zip(lines[::2], lines[1::2], strict=True)}


def test_a_package_that_does_not_load_is_listed_with_the_reason(packages: Path, tmp_path: Path) -> None:
    for name, (code, _) in PACKAGES.items():
        install(packages, name, code)
    set_entry_point(packages, "hyphen", "hyphen = my-package.router")
    code, out = modbench_says(tmp_path, "list", "routers")
    said = sentences(out)
    assert code == 0, out
    assert said["vanilla"] == "The dense decoder: no routing"
    assert {name: said[name][: len(text)] for name, (_, text) in PACKAGES.items()} == {
        name: text for name, (_, text) in PACKAGES.items()
    }


@pytest.mark.processes
def test_a_package_that_takes_the_name_of_a_router_is_never_used_instead_of_it(
    packages: Path, tmp_path: Path
) -> None:
    install(packages, "taker", ROUTER.format("mod"))
    set_entry_point(packages, "taker", "mod = taker")
    reason = (
        "modbench.routers.mod and taker are entry points with this name; uninstall a package, or "
        "rename its entry point"
    )
    code, out = modbench_says(tmp_path, "list", "routers")
    assert (code, sentences(out)["mod"]) == (0, f"BROKEN: {reason}")
    code, out = modbench_says(tmp_path, "flops", "--router", "mod")
    assert (code, out) == (2, f"modbench: router 'mod': {reason}\n")
    code, out = modbench_says(tmp_path, "flops", "--router", "mode_staged")
    assert code == 0, out
