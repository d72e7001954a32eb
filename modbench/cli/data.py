"""The command `modbench data prepare`."""

from typing import Literal

from tyro.conf import OmitArgPrefixes, Positional

from modbench.cli.messages import tell
from modbench.data.config import DataConfig
from modbench.errors import several


def data(
    action: Positional[Literal["prepare"]],
    /,
    *,
    config: OmitArgPrefixes[DataConfig],
    processes: int | None = None,
) -> int:
    """Fetch, check and tokenize a corpus into the cache, unless it is there already.

    Example: modbench data prepare --source text --path my.txt --tokenizer bytes

    Args:
        action: prepare: build the token files of a corpus
        config: the corpus and its tokenizer
        processes: processes that tokenize a folder or a large data set (default: one per core)
    """
    from modbench.data.token_data import prepare
    from modbench.data.tokenizer import with_tokenizer

    default = DataConfig.vocabulary
    config = with_tokenizer(config, None if config.vocabulary == default else config.vocabulary)
    made = prepare(config, say=tell, processes=processes)
    print(
        f"{config.source} is ready: {len(made.train_N):,} training and {len(made.heldout_N):,} held-out "
        f"tokens of a {config.tokenizer} vocabulary of {config.vocabulary:,}; sha256 {made.sha256}"
        + (f"; skipped {several(made.skipped, 'document')} without text" if made.skipped else "")
    )
    return 0
