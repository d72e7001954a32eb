"""Four-way cloze on held-out sentences."""
