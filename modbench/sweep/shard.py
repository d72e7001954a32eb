"""Shares of a suite's runs, for machines that have no common folder: `modbench run --shard 2/4`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from modbench.errors import UserError
from modbench.sweep.wanted import Wanted


@dataclass(frozen=True)
class Shard:
    """Share ``number``, from 1, of ``of``."""

    number: int = 1
    of: int = 1

    @classmethod
    def parsed(cls, text: str | None) -> "Shard":
        """The share ``text``, such as 2/4; None: all runs. Raises UserError: it has another form, or
        there is no such share."""
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard is {text}; it must be K/N with K from 1 to N, such as 2/4")
        return cls(int(match[1]), int(match[2]))

    def part(self, runs: Sequence[Wanted], schemes: Sequence[str] | None) -> list[Wanted]:
        """Those of ``runs`` in this share: every N-th one. With ``schemes``, the names of all schemes:
        the runs of every N-th scheme, since those of an isoFLOP grid depend on each other."""
        if self.of == 1:
            return list(runs)
        order = list(schemes) if schemes else list(dict.fromkeys(wanted.run.key for wanted in runs))
        mine = {name for place, name in enumerate(order) if place % self.of == self.number - 1}
        return [item for item in runs if (item.name if schemes else item.run.key) in mine]
