"""Key-value recall over a distance."""
