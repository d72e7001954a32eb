from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modbench.sweep.command import end_of_command


@pytest.mark.parametrize("page", ["leaderboard.md", "timings.md"])
def test_command_ends_with_the_page_and_the_files(
    page: str, tmp_path: Path, fakes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is shown of a page that has no records."""
    folder = fakes.store(tmp_path, [fakes.make_record("mod"), fakes.make_record("vanilla")])
    rows: Any = SimpleNamespace(mistakes=[])
    assert end_of_command(rows, folder, [], page, print) == 0
    shown, _, files = capsys.readouterr().out.partition(f"{folder}/")
    text = (folder / "leaderboard.md").read_text()
    before = text.partition("\n## Figures")[0]
    assert shown.strip() == (before.strip() if page == "leaderboard.md" else "")
    assert {"leaderboard.csv", f"{folder}/leaderboard.md"} <= set(files.splitlines())
