"""`modbench export`: writes a trained model into a folder that other programs load."""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from modbench.errors import UserError
from modbench.hf.config import PREFIX
from modbench.routing.registry import plugin_file
from modbench.trained.load import Loaded, findings_of
from modbench.trained.weights_folder import WEIGHTS, Description, write_description

Format = Literal["hf", "modbench"]


def export(loaded: Loaded, to: Format, out: Path) -> str:
    """Write ``loaded`` into the folder ``out``, which appears whole or not at all; return a sentence on
    how to load it. ``to``: hf, for transformers, or modbench, for `modbench.load`. Raises UserError:
    ``out`` is a file or isn't empty, or the model can't be written in that format."""
    if to == "hf":
        return new_folder(out, lambda folder: _hugging_face(loaded, folder, out))
    return new_folder(out, lambda folder: _modbench(loaded, folder, out))


def new_folder(out: Path, write: Callable[[Path], str]) -> str:
    """Return what ``write`` returns for a temporary folder, which becomes ``out`` if it succeeds. Raises
    UserError: ``out`` is a file, isn't empty or can't be made."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and isn't an empty folder; give --out a new one")
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(8)}")  # two containers may share a pid
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"folder {out} can't be made ({error.strerror}); give --out another one"
        ) from error
    try:
        message = write(temporary)
        temporary.replace(out)
        return message
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _modbench(loaded: Loaded, folder: Path, out: Path) -> str:
    write_description(
        folder,
        Description(
            suite=loaded.suite,
            label=loaded.row,
            run=loaded.run,
            tokenizer=loaded.tokenizer,
            audit=findings_of(loaded),
        ),
    )
    shutil.copyfile(loaded.weights, folder / WEIGHTS)
    plugin = ", plugins=[FILE]" if plugin_file(loaded.run.router.name) else ""
    return f"load it with modbench.load('{out}'{plugin})"


def _hugging_face(loaded: Loaded, folder: Path, out: Path) -> str:
    from modbench.trained.hugging_face import model_type, write_hugging_face

    difference = write_hugging_face(loaded, folder)
    first = "after `import modbench.hf.retrofit`, " if model_type(loaded).startswith(PREFIX) else ""
    return (
        f"{first}load it with transformers.AutoModelForCausalLM.from_pretrained('{out}'); largest "
        f"difference of a logit from modbench's: {difference:.1e}"
    )
