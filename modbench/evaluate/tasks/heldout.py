"""Held-out documents and training word counts, from which all items are built."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from modbench.data.config import DataConfig
from modbench.data.shards import Tokens
from modbench.data.token_data import load, prepare
from modbench.data.tokenizer import Tokenizer
from modbench.evaluate.tasks.words import WordCounts, count_words

#: Tokens of a text in shards from which items are built: enough for every task, and a minute to decode.
MOST_TOKENS = 2**25

#: Source of each held-out piece of the embedded corpus, in order: s Shakespeare, b Bible, d Django; a
#: dot for a second translation of a passage, which is left out.
PIECES = (
    "sb..d.bdb.bsdbsb.bdssb.dsd.b.bs.b.dbbdsbsssb.bb.dbbsss..b.s.b.d..dbd"
    "dsbbbd.b.ss.s.dsbsbdb...dbds..b..sb.sbs..bssb..bddbsb.sb.b.bb...bsbs"
    "sbdbbd..bb...sb..bd.d.bsbdsb..sbsss.bb..d...bs..d..sbbbb.sdsb.dbb."
)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """``documents`` not used in training, the source of each as one letter, and word counts of the
    training text."""

    documents: tuple[str, ...]
    sources: str
    words: WordCounts


@lru_cache(maxsize=2)
def read_heldout(config: DataConfig) -> HeldOut:
    """Read the text of ``config``, whatever its tokenizer; the shipped one is prepared, in seconds, if
    it is not there. Raises UserError: another corpus is not prepared, or one was altered."""
    is_shipped = config.source == "pypi-en-v1"
    data = prepare(config, say=lambda sentence: None) if is_shipped else load(config)
    documents = _documents(data.heldout_N, data.tokenizer)
    sources = PIECES if is_shipped else "-" * len(documents)
    kept = [(text, source) for text, source in zip(documents, sources, strict=True) if source != "."]
    return HeldOut(
        documents=tuple(text for text, _ in kept),
        sources="".join(source for _, source in kept),
        words=count_words(_documents(data.train_N, data.tokenizer)),
    )


def _documents(tokens_N: Tokens, tokenizer: Tokenizer) -> list[str]:
    """Split the tokens at end of text, and decode; of those in shards, which may not fit in memory, the
    first."""
    stream_N = tokens_N if isinstance(tokens_N, np.ndarray) else tokens_N[:MOST_TOKENS]
    ends = np.flatnonzero(stream_N == tokenizer.end_of_text)
    return [tokenizer.decode(ids_N.tolist()) for ids_N in np.split(stream_N, ends + 1) if len(ids_N)]
