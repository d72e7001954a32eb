"""The next held-out sentence, among four."""
