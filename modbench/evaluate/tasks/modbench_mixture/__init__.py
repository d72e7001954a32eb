"""Predictable and unpredictable words in one text."""
