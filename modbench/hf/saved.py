"""Folders that a retrofitted model was saved in. Imports no transformers by itself."""

import json
from pathlib import Path

from modbench.hf.config import PREFIX


def register_for(folder: Path) -> None:
    """Import what `AutoModelForCausalLM` needs to load ``folder``, if it holds a retrofitted model."""
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return  # transformers says what is wrong
    if str(kind).startswith(PREFIX):
        import modbench.hf.retrofit  # noqa: F401
