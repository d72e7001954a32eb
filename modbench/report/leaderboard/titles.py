"""Headings and panel titles of comparisons: their budgets."""

from collections.abc import Sequence

from modbench.report.leaderboard.board import Entry


def comparison_titles(comparisons: Sequence[Sequence[Entry]]) -> list[str]:
    """The budget of each comparison; with its number, as in leaderboard.csv, if comparisons share
    budgets, as those of several texts do."""
    budgets = [f"{entries[0].row.budget:.3g} training FLOPs" for entries in comparisons]
    if len(set(budgets)) == len(budgets):
        return budgets
    numbers = [entries[0].comparison for entries in comparisons]
    return [f"{b}, comparison {n}" for b, n in zip(budgets, numbers, strict=True)]
