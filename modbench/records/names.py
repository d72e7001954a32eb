"""Names in suites and records. No match of a pattern is a spreadsheet formula or HTML."""

import re

from modbench.errors import several

#: A suite's name, which is also the name of its folder.
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,59}")
#: The label of a scheme or a shape, and the name of a router.
LABEL = re.compile(r"\w[\w .,:;+%=()@*-]{0,59}")
#: The label of a row: its scheme's, with that of its size after a slash if the suite has several.
ROW_LABEL = re.compile(rf"{LABEL.pattern}(/{LABEL.pattern})?")
#: The characters of a label, in words.
LABEL_WORDS = (
    "1 to 60 letters, digits, spaces and . , : ; + % = ( ) @ * - _, starting with a letter or a digit"
)
#: Start of the hash that names what a record is about.
KEY = re.compile(r"[0-9a-f]{16}")


def at_depth(scheme: str, depth: int | None) -> str:
    """The name of ``scheme`` at ``depth`` layers, in a suite with curves of several depths; None: its
    label."""
    return scheme if depth is None else f"{scheme} at {several(depth, 'layer')}"
