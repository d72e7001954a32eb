"""The command `modbench export`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from modbench.cli.messages import tell
from modbench.cli.options import Run, Trained


def export(
    run: Run,
    /,
    *,
    to: Literal["hf", "modbench"],
    out: Annotated[Path, arg(metavar="FOLDER")],
    common: OmitArgPrefixes[Trained],
) -> int:
    """Write the model and the tokenizer of a trained run into a folder.

    Example: modbench export quick/vanilla --to hf --out my-model

    Args:
        run: a trained run, SUITE/LABEL@BUDGET#SEED such as quick/mod@1e12#0 (parts after the
            label may be left out; of several seeds the first is taken); or a folder of weights
        to: hf: for Hugging Face transformers, which has vanilla as Llama and token_choice as Mixtral,
            and with modbench.hf.retrofit depth routing; modbench: for `modbench.load`
        out: folder to write; it must be new or empty
        common: folder of trained runs, and their plugins
    """
    from modbench.trained.export import export as write
    from modbench.trained.load import load_trained

    tell(write(load_trained(run, common.plugins, results=common.results), to, out))
    print(out)
    return 0
