"""Records ``modbench check`` of an example router as a picture of a terminal: ``docs/check.svg``. The
last digits of its errors differ between processors, so it is not compared in tests."""

import io
import re
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "check.svg"
COMMAND = ("modbench", "check", "mlp_mod.py")
#: Wide enough for the tables; the longest findings of probes are cut, as in a terminal of that width.
WIDTH = 104
#: A picture in a README may load no font from elsewhere.
_FONTS = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)


def main() -> None:
    done = subprocess.run(
        [sys.executable, "-m", *COMMAND],
        cwd=ROOT / "examples",
        capture_output=True,
        text=True,
        check=True,
    )
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {' '.join(COMMAND)}", style="bold"))
    for line in done.stdout.splitlines():
        console.print(Text(line), no_wrap=True, overflow="ellipsis", highlight=False)
    picture = console.export_svg(
        title="modbench check",
        theme=DEFAULT_TERMINAL_THEME,
        code_format=_FONTS.sub("", CONSOLE_SVG_FORMAT),
        unique_id="check",
    )
    PICTURE.write_text(picture)


if __name__ == "__main__":
    main()
