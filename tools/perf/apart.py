"""A plain loop in a process of its own, without modbench's settings: with the C library's defaults,
which modbench's runs change (`modbench.sweep.process.ALLOCATOR`)."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from modbench.model.config import ModelConfig
from modbench.sweep.process import ALLOCATOR


class PlainLoopApart:
    """Called, it takes a step on what it drew last, and has to be told to `draw`: the batches are those
    of `training.MadeUpText` from its beginning. Both return when the process has done it."""

    def __init__(
        self, config: ModelConfig, sequences: int, tokens: int, precision: str, threads: int
    ) -> None:
        asked = {
            "config": asdict(config),
            "sequences": sequences,
            "tokens": tokens,
            "precision": precision,
            "threads": threads,
        }
        usual = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=usual | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )

    def __enter__(self) -> "PlainLoopApart":
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # which closes what both ends of it read and write
            assert self._process.stdin is not None
            self._process.stdin.close()

    def draw(self) -> None:
        self._ask("draw")

    def __call__(self, *_: object) -> float:
        """The loss."""
        return self._ask("step")

    def _ask(self, what: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the plain loop's process ended with {self._process.wait()}")
        return json.loads(answer)


def serve(asked: dict[str, Any]) -> None:
    """Do what standard input says, line by line."""
    import torch
    from plain_loop import PlainLoop
    from training import DTYPES, MadeUpText

    torch.set_num_threads(asked["threads"])
    config = ModelConfig(**asked["config"])
    loop = PlainLoop(config, asked["tokens"], DTYPES[asked["precision"]])
    text = MadeUpText(config.vocabulary, asked["sequences"], asked["tokens"])
    batch = None
    for line in sys.stdin:
        if line.strip() == "draw":
            batch, answer = text(), None
        else:
            answer = loop(*batch).item()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
