"""Patterns of the names in suites and records; no match is a spreadsheet formula or HTML."""

import re

#: A suite's name, which is also the name of its folder.
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,59}")
#: The label of a scheme or a shape, and the name of a router.
LABEL = re.compile(r"\w[\w .,:;+%=()@*-]{0,59}")
#: The label of a row: its scheme's, in suites of several shapes with its shape's.
ROW_LABEL = re.compile(rf"{LABEL.pattern}(/{LABEL.pattern})?")
#: The characters of a label, in words.
LABEL_WORDS = (
    "1 to 60 letters, digits, spaces and . , : ; + % = ( ) @ * - _, starting with a letter or a digit"
)
#: Start of the hash that names what a record is about.
KEY = re.compile(r"[0-9a-f]{16}")
