from pathlib import Path

import pytest

from modbench.errors import UserError
from modbench.sweep import run


def test_without_lm_eval_a_suite_that_needs_it_is_refused_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text('[suite]\nname = "s"\n[sweep]\nbudgets = [1e12]\n[[schemes]]\nrouter = "vanilla"\n')
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == "lm_eval" else pytest.fail(name))
    with pytest.raises(UserError, match="lm-eval, which scores them, is not installed; install it, or"):
        run.run_suite(str(suite), results=tmp_path / "results")
    assert not (tmp_path / "results").exists()
