"""Downloads from a server on this machine that breaks off, is slow, or has something else than was expected."""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
import time
import types

import pytest

from polydetox.core.errors import UserError
from polydetox.data import download

CONTENT = bytes(range(256)) * 2000


class Faulty:
    """Serves one file with ranges, and fails as it is told: after so many bytes, by a status, or by saying nothing."""

    def __init__(self):
        self.content = CONTENT
        self.version = '"v1"'
        self.ranges: list[str | None] = []
        self.breaks_after: int | None = None
        self.statuses: list[int] = []
        self.silent = False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.ranges.append(self.headers.get("Range"))
                if outer.silent:
                    time.sleep(1.5)
                    return
                if outer.statuses and (status := outer.statuses.pop(0)) != 200:
                    self.send_error(status)
                    return
                start = int(self.headers["Range"][6:-1]) if self.headers.get("Range") else 0
                if self.headers.get("If-Range", outer.version) != outer.version:
                    start = 0
                if start >= len(outer.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(outer.content)}")
                    self.end_headers()
                    return
                part = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("ETag", outer.version)
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                if outer.breaks_after is not None:
                    part, outer.breaks_after = part[: outer.breaks_after], None
                self.wfile.write(part)
                self.wfile.flush()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/set.bin"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    running = Faulty()
    yield running
    running.close()


SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_broken_connection_is_continued_and_the_whole_is_verified(server, tmp_path):
    server.breaks_after = 196_608
    download.download(server.address, tmp_path / "set.bin", SHA256)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=196608-"], "the first part is not asked for again"
    assert [path.name for path in tmp_path.iterdir()] == ["set.bin"]


def test_a_later_call_goes_on_where_a_stopped_one_was(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.breaks_after = 262_144
    with pytest.raises(UserError, match="the connection broke off, or there is none\\); the same command resumes"):
        download.download(server.address, tmp_path / "set.bin", None)
    assert not (tmp_path / "set.bin").exists()
    download.download(server.address, tmp_path / "set.bin", None)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT and server.ranges[1] == "bytes=262144-"


def test_another_version_of_the_file_is_not_added_to_the_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.breaks_after = 262_144
    with pytest.raises(UserError):
        download.download(server.address, tmp_path / "set.bin", None)
    server.content, server.version = CONTENT[::-1], '"v2"'
    download.download(server.address, tmp_path / "set.bin", None)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT[::-1]


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / ".set.bin.part").write_bytes(CONTENT)
    download.download(server.address, tmp_path / "set.bin", SHA256)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / ".set.bin.part").write_bytes(CONTENT + b"more")
    download.download(server.address, tmp_path / "set.bin", SHA256)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT and server.ranges[1] is None


def test_a_wrong_hash_is_refused_and_nothing_kept(server, tmp_path):
    with pytest.raises(UserError, match="has another sha256 than 000"):
        download.download(server.address, tmp_path / "set.bin", "0" * 64)
    assert list(tmp_path.iterdir()) == [] and len(server.ranges) == 1, "trying again would change nothing"


def test_a_missing_file_is_named_at_once(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(UserError, match=r"set\.bin: the server says 404; the file may have moved"):
        download.download(server.address, tmp_path / "set.bin", SHA256)
    assert len(server.ranges) == 1


def test_a_busy_server_is_tried_again(server, tmp_path):
    server.statuses = [503, 429, 200]
    download.download(server.address, tmp_path / "set.bin", SHA256)
    assert len(server.ranges) == 3


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.silent = True
    with pytest.raises(UserError, match=r"no answer within 0\.2 seconds\); the same command resumes"):
        download.download(server.address, tmp_path / "set.bin", SHA256)
    assert len(server.ranges) == download.TRIES


def test_where_there_is_no_server_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with pytest.raises(UserError, match="the connection broke off, or there is none"):
        download.download("http://127.0.0.1:9/set.bin", tmp_path / "set.bin", None)


# --- the clients of Google Drive and Kaggle, which cannot be run here: what is asked of them, and what may go wrong ---


def test_google_drive_is_asked_for_one_file_of_the_folder(tmp_path, monkeypatch):
    listed = [types.SimpleNamespace(path=f"x/{name}", id=f"id-{name}") for name in ("model.pt", "pairs.zip")]

    def fetched(id, output, **_):
        assert id == "id-pairs.zip"
        with open(output, "wb") as stream:
            stream.write(b"zip")
        return output

    module = types.SimpleNamespace(download_folder=lambda **_: listed, download=fetched)
    monkeypatch.setitem(sys.modules, "gdown", module)
    download.download_drive("folder", "pairs.zip", tmp_path / "pairs.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.zip"]
    with pytest.raises(UserError, match=r"the folder has no other\.zip any more"):
        download.download_drive("folder", "other.zip", tmp_path / "other.zip")
    module.download = lambda **_: 1 / 0
    with pytest.raises(UserError, match=r"download pairs\.zip from https://drive\.google\.com/drive/folders/folder"):
        download.download_drive("folder", "pairs.zip", tmp_path / "pairs.zip")
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match=r"needs gdown: pip install 'polydetox\[data\]'"):
        download.download_drive("folder", "pairs.zip", tmp_path / "pairs.zip")


def test_kaggle_is_asked_for_one_file_and_its_key_comes_from_the_environment(tmp_path, monkeypatch):
    class Client:
        def authenticate(self):
            pass

        def competition_download_file(self, competition, name, path, quiet):
            assert (competition, name) == ("toxic", "train.csv")
            (tmp_path / "train.csv.zip").write_bytes(b"zip")

    module = types.SimpleNamespace(KaggleApi=Client)
    for name in ("kaggle", "kaggle.api"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", module)
    download.download_kaggle("toxic", "train.csv", tmp_path / "train.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]
    Client.authenticate = lambda self: sys.exit(1)
    with pytest.raises(UserError, match=r"set KAGGLE_API_TOKEN .* accept the rules of the competition at https://www"):
        download.download_kaggle("toxic", "train.csv", tmp_path / "train.csv")
