"""Downloads from a server on this machine that breaks off, is slow, or has something else than was expected."""

from __future__ import annotations

import hashlib
import http.server
import threading

import pytest

from polydetox.core.errors import UserError
from polydetox.data import download

CONTENT = bytes(range(256)) * 2000


class Faulty:
    """Serves one file, and fails as it is told: after so many bytes, by a status, or by saying nothing."""

    def __init__(self):
        self.asked = 0
        self.breaks_after: int | None = None
        self.statuses: list[int] = []
        self.silent = False
        outer, self._closed = self, threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked += 1
                if outer.silent:
                    outer._closed.wait(1.5)
                    return
                if outer.statuses and (status := outer.statuses.pop(0)) != 200:
                    self.send_error(status)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT[: outer.breaks_after])
                outer.breaks_after = None

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/set.bin"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between two tries
    running = Faulty()
    yield running
    running.close()


SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_broken_connection_is_tried_again_and_the_whole_is_verified(server, tmp_path):
    server.breaks_after = 196_608
    download.download(server.address, tmp_path / "set.bin", SHA256)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT and server.asked == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set.bin"]


def test_half_a_file_never_stands_under_its_name(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.breaks_after = 262_144
    with pytest.raises(UserError, match=r"set\.bin: cannot be downloaded \(.*\); check the network and try again"):
        download.download(server.address, tmp_path / "set.bin", None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_and_whole_is_not_asked_for(server, tmp_path):
    (tmp_path / "set.bin").write_bytes(CONTENT)
    download.download(server.address, tmp_path / "set.bin", SHA256)
    assert server.asked == 0
    (tmp_path / "set.bin").write_bytes(CONTENT[:9])
    download.download(server.address, tmp_path / "set.bin", SHA256)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_nothing_kept(server, tmp_path):
    with pytest.raises(UserError, match="has another sha256 than 000"):
        download.download(server.address, tmp_path / "set.bin", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(server, tmp_path):
    server.statuses = [404] * download.TRIES
    with pytest.raises(UserError, match=r"set\.bin: the server says 404; try again later, or see"):
        download.download(server.address, tmp_path / "set.bin", SHA256)


def test_a_busy_server_is_tried_again(server, tmp_path):
    server.statuses = [503, 429, 200]
    download.download(server.address, tmp_path / "set.bin", SHA256)
    assert server.asked == 3


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.silent = True
    with pytest.raises(UserError, match=r"cannot be downloaded \(ReadTimeout\)"):
        download.download(server.address, tmp_path / "set.bin", SHA256)
    assert server.asked == download.TRIES


def test_where_there_is_no_server_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(UserError, match=r"cannot be downloaded \(ConnectionError\)"):
        download.download("http://127.0.0.1:9/set.bin", tmp_path / "set.bin", None)
