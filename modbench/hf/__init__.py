"""Causal language models of Hugging Face transformers as rows of a suite. Needs the extra `[hf]`."""
