"""Compares routing schemes for language models at equal compute."""

__version__ = "0.1.0"
