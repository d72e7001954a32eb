"""The sessions of the noxfile and their arguments."""

import contextlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from nox.command import CommandFailed


@pytest.fixture(scope="session")  # nox refuses sessions that are registered twice
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile", Path(__file__).parents[1] / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("--again --only mod", "--only mod"),
        ("--repetitions 3 --results here", "--results here"),
        ("--plugin a.py --repetitions=3", "--plugin a.py"),
        ("", ""),
    ],
)
def test_options_of_timing_alone_are_not_passed_to_training(
    words: str, kept: str, noxfile: ModuleType
) -> None:
    assert noxfile.of_training(words.split()) == kept.split()


class Session:
    """The part of nox's session that is used here; every command prints "True"."""

    def __init__(self, *posargs: str) -> None:
        self.posargs = posargs
        self.commands: list[tuple[str, ...]] = []

    def run(self, *words: str, silent: bool = False) -> str:
        self.commands.append(words)
        return "True"

    def error(self, words: str) -> None:
        raise RuntimeError(words)


@pytest.mark.parametrize(
    ("ended", "trains", "raised"),
    [("", True, None), ("Returned code 1", True, RuntimeError)]
    + [(f"Returned code {code}", False, CommandFailed) for code in (2, 130, -15)],
)
def test_schemes_are_trained_unless_the_timing_was_refused_or_stopped(
    ended: str,
    trains: bool,
    raised: type[Exception] | None,
    noxfile: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verbs: list[str] = []

    def suite(session: Session, verb: str, *_: object) -> None:
        verbs.append(verb)
        if verb == "time" and ended:
            raise CommandFailed(ended)

    monkeypatch.setattr(noxfile, "suite", suite)
    monkeypatch.setattr(noxfile, "ready", lambda session: "python")
    with contextlib.nullcontext() if raised is None else pytest.raises(raised):
        noxfile.bench_gpu.func(Session())
    assert verbs == ["time", "run"][: 2 if trains else 1]


def test_the_full_matrix_runs_in_tests_full_with_both_versions_of_pytorch(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noxfile, "ready", lambda session, name="newest", further=(): name)
    short, full = Session("-k", "mod"), Session("-k", "mod")
    noxfile.tests.func(short)
    for version in ("newest", "oldest"):
        noxfile.tests_full.func(full, version)
    words = ("-m", "pytest", *noxfile.PARALLEL)
    assert short.commands == [("newest", *words, "-m", "not full and not slow", "-k", "mod")]
    assert full.commands == [(version, *words, "-k", "mod") for version in ("newest", "oldest")]


def test_the_pre_release_of_lm_eval_runs_the_tests_of_evaluation(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noxfile, "ready", lambda session, name, further: f"{name} {further}")
    session = Session()
    noxfile.tests_full.func(session, "next-lm-eval")
    [(python, *words)] = session.commands
    assert python == f"next-lm-eval ['{noxfile.NEXT_LM_EVAL}']"
    assert words[-len(noxfile.LM_EVAL_TESTS) :] == noxfile.LM_EVAL_TESTS
    assert all((Path(noxfile.__file__).parent / test).is_file() for test in noxfile.LM_EVAL_TESTS)
