"""Bits per byte of held-out documents."""
