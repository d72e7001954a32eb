"""Mistakes a user can mend, and how they are worded: what, where, what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake. The command line prints its one sentence and exits with 2, no traceback."""


#: What code that isn't ours may raise. SystemExit, too: it would end the program as if all were well.
FAULTS = (Exception, SystemExit)


def known_names(name: object, known: Iterable[str]) -> str:
    """The tail of an 'unknown X' sentence: the nearest match, if any is near, and the list."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(names) or 'none'}"
