"""A progress bar on standard error while a report is written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Parts of a report (`modbench.report.page.PARTS`, whose import takes seconds).
PARTS = ("comparisons", "routing", "curves", "times", "page")


@contextmanager
def report_bar() -> Iterator[Callable[[str], None]]:
    """Context with a bar that a call with the name of a part advances; it is shown on a terminal only,
    and removed at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("writing the report: {task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task("records", total=len(PARTS) + 1)

        def begin(part: str) -> None:
            progress.update(bar, description=part, advance=1)

        yield begin
