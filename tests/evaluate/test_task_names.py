"""Names of tasks: lm-eval's index in the cache, a user's folder, unknown names."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from modbench.errors import UserError
from modbench.evaluate.tasks import names
from modbench.evaluate.tasks.names import check_names, find_task


@pytest.fixture
def small_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of tasks of an lm-eval with few tasks, and a cache of its own."""
    folder = tmp_path / "lm_eval" / "tasks"
    folder.mkdir(parents=True)
    (folder / "_base").write_text("tag: [both, one]\n")
    (folder / "a.yaml").write_text("task: first\ninclude: _base\n")
    (folder / "b.yaml").write_text("task: second\ntag: both\n")
    (folder / "c.yaml").write_text("group: all\ntask: [first, second]\n")
    package = SimpleNamespace(submodule_search_locations=[str(folder.parent)])
    monkeypatch.setattr(names, "find_spec", lambda _: package)
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    names._of_lm_eval.cache_clear()
    yield folder
    names._of_lm_eval.cache_clear()


def test_tasks_groups_and_tags_are_found(small_lm_eval: Path) -> None:
    assert find_task("first") == small_lm_eval / "a.yaml"
    assert find_task("all") == small_lm_eval / "c.yaml"
    assert find_task("both") == ["first", "second"]
    assert find_task("one") == ["first"]
    assert find_task("third") is None
    assert isinstance(find_task("modbench_cloze"), Path)


def test_the_index_of_lm_eval_is_read_once_for_its_version(small_lm_eval: Path, tmp_path: Path) -> None:
    check_names(["first"])
    assert (tmp_path / "cache" / f"lm-eval-{version('lm_eval')}.json").is_file()
    (small_lm_eval / "a.yaml").unlink()
    names._of_lm_eval.cache_clear()
    names._of_folder.cache_clear()
    check_names(["first"])


def test_an_unknown_name_is_refused_with_the_nearest(small_lm_eval: Path) -> None:
    with pytest.raises(UserError, match="'frist' is not known; did you mean 'first'"):
        check_names(["frist"])


def test_a_name_of_the_users_folder_comes_first(small_lm_eval: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "some.yaml").write_text("task: first\n")
    assert find_task("first", tmp_path / "mine") == tmp_path / "mine" / "some.yaml"
    assert find_task("second", tmp_path / "mine") == small_lm_eval / "b.yaml"
