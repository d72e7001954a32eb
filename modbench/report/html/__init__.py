"""Pages in HTML: one self-contained file per suite, and an index over the suites of a folder."""
