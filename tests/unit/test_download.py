"""Downloads from a server on this machine that breaks off, is slow, or has something else than was expected."""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
import types

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
