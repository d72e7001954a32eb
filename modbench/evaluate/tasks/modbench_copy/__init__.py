"""Copying a word over a distance."""
