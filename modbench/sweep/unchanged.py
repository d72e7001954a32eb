"""A command that finds a suite as the last one has left it, with nothing to do, says the same again: in
a second, without PyTorch, and without writing. What the last one said is kept in the cache folder, under
the hash of all that could change it."""

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import modbench
from modbench.data.cache_folder import cache_folder
from modbench.errors import UserError
from modbench.records.store import write_files
from modbench.routing.registry import code_sha256
from modbench.shipped import committed_results
from modbench.sweep.request import RunRequest
from modbench.sweep.suite import Suite, load_suite

#: Variables that change results, or where they are measured.
_VARIABLES = ("MODBENCH_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "MALLOC_", "GLIBC_", "PYTORCH_", "TORCH_")


def digest_of(request: RunRequest) -> str:
    """The hash of the suite of ``request`` with its texts and tasks, its folder of results, the rest of
    the request, code, versions, machine and terminal. Raises UserError: an error in the suite."""
    suite = load_suite(request.name, request.settings)
    folder = request.results / suite.header.name
    source = Path(suite.source)
    points = {point.value.partition(":")[0] for point in entry_points(group="modbench.routers")}
    places = [folder, folder / "records", *_inputs(suite)]
    if committed := committed_results(suite.header.name):
        places.append(committed / "records")
    foreign = [find_spec(module.partition(".")[0]) for module in points]
    codes = {Path(spec.origin) for spec in foreign if spec and spec.origin} | {*request.plugins}
    # How jobs would run says nothing of a suite that has none left.
    asked = vars(request) | {"results": folder.resolve(), "wait": None, "resources": None}
    parts = [
        {key: str(value) for key, value in asked.items()},
        (source.read_text() if source.is_file() else request.name),
        sorted(code_sha256(file) for file in {*codes, Path(modbench.__file__)} if file.is_file()),
        [version(package) for package in ("torch", "tokenizers", "lm-eval")],
        (platform.node(), os.cpu_count(), sorted(_states(Path("/proc/driver/nvidia/gpus")))),
        sorted(item for item in os.environ.items() if item[0].startswith(_VARIABLES)),
        (os.getcwd(), str(folder.resolve()), sys.stdout.isatty() and shutil.get_terminal_size().columns),
        [sorted(_states(place)) for place in places],
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _inputs(suite: Suite) -> Iterator[Path]:
    """The files and folders that ``suite`` reads."""
    named = (suite.data.path, suite.data.tokenizer, suite.data.name)
    for path in (*named, suite.measure.data_dir, suite.measure.include):
        if path and Path(path).exists():
            yield Path(path)
    for hub in suite.hubs.values():
        if hub.folder:
            yield Path(hub.folder)


def _states(place: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of the file ``place``, or of the files in it."""
    with suppress(OSError):
        for entry in os.scandir(place) if place.is_dir() else [place]:
            state = entry.stat()
            if not entry.is_dir():
                yield entry.name, state.st_size, state.st_mtime_ns


class Said:
    """Keeps the output of a command for the next one that finds nothing left."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, str]] = []
        self._kept = False  #: once `only` was called
        self._streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}

    def __enter__(self) -> "Said":
        for name, stream in self._streams.items():
            setattr(sys, name, _Heard(stream, partial(self._hear, name)))
        return self

    def __exit__(self, *error: object) -> None:
        for name, stream in self._streams.items():
            setattr(sys, name, stream)

    def _hear(self, name: str, text: str) -> None:
        if self._kept:
            self._parts.append((name, text))

    def only(self, sentences: Sequence[str]) -> None:
        """Forget what was said, for ``sentences``; none: also what follows."""
        self._parts = [("stderr", f"modbench: {sentence}\n") for sentence in sentences]
        self._kept = bool(sentences)

    def keep(self, digest: str) -> None:
        """Keep it for the next command with ``digest``."""
        if self._kept:
            with suppress(OSError, UserError):
                _file(digest).parent.mkdir(parents=True, exist_ok=True)
                content = json.dumps(self._parts).encode()
                write_files(_file(digest).parent, {_file(digest).name: content})

    @staticmethod
    def again(digest: str) -> bool:
        """Say what the command with ``digest`` has said; return False if nothing is known."""
        try:
            parts = [(name, text) for name, text in json.loads(_file(digest).read_bytes())]
        except (OSError, ValueError):
            return False
        for name, text in parts:
            print(text, end="", file=getattr(sys, name))
        return True


class _Heard:
    """A stream whose text ``hear`` gets, too."""

    def __init__(self, stream: Any, hear: Callable[[str], None]) -> None:
        self._stream, self._hear = stream, hear

    def write(self, text: str) -> int:
        self._hear(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _file(digest: str) -> Path:
    return cache_folder() / "unchanged" / f"{digest}.json"
