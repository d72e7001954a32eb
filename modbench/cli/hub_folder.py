"""Model folders of Hugging Face transformers, given to a command that takes none."""

from pathlib import Path
from typing import Literal

from modbench.errors import UserError, is_file

#: What each command takes in place of such a folder.
_NEEDED = {
    "sample": "a trained run of modbench",
    "export": "a trained run of modbench",
    "audit": "a router's name",
    "check": "a router's name or file",
    "time": "a suite",
    "run": "a suite",
}


def refuse_hub_folder(
    given: str, command: Literal["sample", "export", "audit", "check", "time", "run"]
) -> None:
    """Raise a `UserError` if ``given``, the argument of ``command``, is a model folder of transformers;
    the sentence names the commands that take one."""
    folder = Path(given)
    if is_file(folder / "config.json") and not is_file(folder / "modbench.json"):
        raise UserError(
            f"{given} is a model folder of Hugging Face transformers, and `modbench {command}` takes "
            f"{_NEEDED[command]}; with such a folder, `modbench eval {given} --tasks NAME` scores the "
            f"model and `modbench flops --hf {given}` states its FLOPs"
        )
