"""Text that cloze items can be made of: made-up words, all about as frequent."""

import random


def made_up_text(sentences: int, seed: int = 0) -> str:
    """Return ``sentences`` sentences; another ``seed`` gives others with the same words."""
    rng = random.Random("words")
    words = sorted({"".join(rng.choice("abcdefghij") for _ in range(6)) for _ in range(120)})
    rng = random.Random(seed)
    lines = []
    for _ in range(sentences):
        first, *rest = rng.choices(words, k=9)
        lines.append(f"{first.capitalize()} {' '.join(rest)}.")
    return "\n".join(lines)
