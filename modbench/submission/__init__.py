"""Submissions to a board: a folder with a router's code, the records of its runs and what its authors
say of it."""
