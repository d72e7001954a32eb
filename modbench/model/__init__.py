"""The decoder that all schemes share, in plain PyTorch."""
