"""Fetching data sources from a server on this machine: what is verified, what is kept, what is refused."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import re
import threading
import zipfile

import pytest
import yaml

from polydetox.cli import main
from polydetox.core.errors import UserError
from polydetox.data import catalogue, download, fetching, prompts
from tiny import CHECKOUT

# RTP_LX_DE.json and RTP_LX_EN.json, encrypted with the password `some-set-entries-4/8/24`.
ENCRYPTED = base64.b64decode(
    b"UEsDBBQACQAIAMUCeF22BNKUNAAAADsAAAAOABwAUlRQX0xYX0RFLmpzb25VVAkAA7LYBGuy2ARrdXgLAAEEAAAAAAQAAAAASmwL"
    b"Zym3GeFSOkYGuGHfjMhcjnPQdesOt5InENnJD2ISlfmsRrkirz/2rtAQ2+GI4mAhslBLBwi2BNKUNAAAADsAAABQSwMECgAJAAAA"
    b"xQJ4XXBnAHQqAAAAHgAAAA4AHABSVFBfTFhfRU4uanNvblVUCQADstgEa7LYBGt1eAsAAQQAAAAABAAAAAAzRmBJKsDp7WZqYhRo"
    b"cxT+NwEnQeEkA1Q2K2Hat/4k8iSdIeb55n++1PxQSwcIcGcAdCoAAAAeAAAAUEsBAh4DFAAJAAgAxQJ4XbYE0pQ0AAAAOwAAAA4A"
    b"GAAAAAAAAQAAAKSBAAAAAFJUUF9MWF9ERS5qc29uVVQFAAOy2ARrdXgLAAEEAAAAAAQAAAAAUEsBAh4DCgAJAAAAxQJ4XXBnAHQq"
    b"AAAAHgAAAA4AGAAAAAAAAQAAAKSBjAAAAFJUUF9MWF9FTi5qc29uVVQFAAOy2ARrdXgLAAEEAAAAAAQAAAAAUEsFBgAAAAACAAIA"
    b"qAAAAA4BAAAAAA=="
)
README = b"The password is the name of the repository in lower case, `-entries` and `-4/8/24`."


class Server:
    """Serves some files, counts what is asked for, and can fail at one of them."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing: set[str] = set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rsplit("/", 1)[-1]
                outer.asked.append(name)
                if name in outer.failing or name not in outer.files:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.files[name])))
                self.end_headers()
                self.wfile.write(outer.files[name])

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def listed(checkout, server, tmp_path, monkeypatch):
    """Declare one source, `rtp-lx`, with the files of the server; returns a function that does so."""
    monkeypatch.setattr(download, "TRIES", 1)
    monkeypatch.setenv("POLYDETOX_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("RTP_LX", raising=False)
    monkeypatch.delenv("POLYDETOX_ZIP_PASSWORD", raising=False)
    file = checkout / "params/data.yaml"
    known = yaml.safe_load(file.read_text())

    def declare(files: dict[str, bytes], **sha256: str):
        server.files = files
        entry = known["rtp-lx"] | {"address": "https://example.org/Some-Set", "files": [
            {"address": f"{server.address}/{name}", **({"sha256": sha256[name.split(".")[0]]}
                                                       if name.split(".")[0] in sha256 else {})}
            for name in files]}  # fmt: skip
        file.write_text(yaml.safe_dump(known | {"rtp-lx": entry}))

    return declare


def test_files_are_fetched_verified_and_fetched_once(listed, server):
    content = {"RTP_LX_EN.json": b'{"Prompt": "Two", "Index": 0}', "RTP_LX_DE.json": b'{"Prompt": "Zwei", "Index": 0}'}
    listed(content, RTP_LX_EN=hashlib.sha256(content["RTP_LX_EN.json"]).hexdigest())
    folder = fetching.fetch("rtp-lx")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    assert server.asked == list(content)
    assert fetching.fetch("rtp-lx") == folder and len(server.asked) == 2, "nothing is downloaded twice"


def test_a_fetched_source_stands_in_for_its_variable(listed, tmp_path, monkeypatch):
    listed({"RTP_LX_DE.json": b'{"Prompt": "Zwei", "Index": 0}'})
    with pytest.raises(UserError, match="run `polydetox data fetch rtp-lx`, or export RTP_LX="):
        prompts.load_prompts("rtp-lx", "de", "$RTP_LX")
    folder = fetching.fetch("rtp-lx")
    assert catalogue.local_path("$RTP_LX") == folder and catalogue.local_path("${RTP_LX}/x.json") == folder / "x.json"
    assert list(prompts.load_prompts("rtp-lx", "de", "$RTP_LX")[0]["prompt"]) == ["Zwei"]
    monkeypatch.setenv("RTP_LX", str(tmp_path / "own"))
    assert catalogue.local_path("$RTP_LX") == tmp_path / "own" == catalogue.where("rtp-lx"), (
        "the reader's own comes first"
    )


def test_what_was_changed_on_the_way_is_refused(listed, tmp_path):
    listed({"RTP_LX_DE.json": b"something else"}, RTP_LX_DE="0" * 64)
    with pytest.raises(UserError, match="has another sha256 than 000"):
        fetching.fetch("rtp-lx")
    assert catalogue.fetched_folder("rtp-lx") is None and not list((tmp_path / "data").rglob("RTP_LX*"))


def test_a_fetch_that_stopped_goes_on(listed, server):
    listed({"RTP_LX_DE.json": b'{"Prompt": "a", "Index": 0}', "RTP_LX_EN.json": b'{"Prompt": "b", "Index": 0}'},
           RTP_LX_DE=hashlib.sha256(b'{"Prompt": "a", "Index": 0}').hexdigest())  # fmt: skip
    server.failing = {"RTP_LX_EN.json"}
    with pytest.raises(UserError, match=r"RTP_LX_EN.json: the server says 503; try again"):
        fetching.fetch("rtp-lx")
    assert catalogue.fetched_folder("rtp-lx") is None, "half a source is none"
    server.failing = set()
    fetching.fetch("rtp-lx")
    assert server.asked.count("RTP_LX_DE.json") == 1


def test_an_encrypted_archive_opens_with_what_its_readme_says(listed):
    listed({"README.md": README, "RTP-LX.zip": ENCRYPTED})
    folder = fetching.fetch("rtp-lx")
    assert sorted(path.name for path in folder.iterdir()) == ["RTP_LX_DE.json", "RTP_LX_EN.json"]


def test_a_password_may_come_from_the_environment_and_is_needed(listed, monkeypatch, tmp_path):
    listed({"README.md": b"Nothing is said, and 1-2/3 is no date.", "RTP-LX.zip": ENCRYPTED})
    with pytest.raises(UserError, match="export POLYDETOX_ZIP_PASSWORD="):
        fetching.fetch("rtp-lx")
    monkeypatch.setenv("POLYDETOX_ZIP_PASSWORD", "some-set-entries-4/8/24")
    fetching.fetch("rtp-lx")
    for path in (tmp_path / "data").rglob("*.json"):
        assert "entries-4/8/24" not in path.read_text(), "a secret is written nowhere"


def plain_zip(**files: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/") + ".json", text)
    return stream.getvalue()


def test_a_plain_archive_is_unpacked_flat_and_never_outside(listed, tmp_path):
    listed({"RTP-LX.zip": plain_zip(**{"deep__RTP_LX_DE": '{"Prompt": "x", "Index": 0}', "..__..__evil": "{}"})})
    folder = fetching.fetch("rtp-lx")
    assert sorted(path.name for path in folder.iterdir()) == ["RTP_LX_DE.json", "evil.json"]
    assert not (tmp_path / "evil.json").exists()


def test_a_cut_off_archive_is_refused(listed):
    listed({"RTP-LX.zip": plain_zip(RTP_LX_DE="{}" * 100)[:80]})
    with pytest.raises(UserError, match="not a whole zip archive"):
        fetching.fetch("rtp-lx")


def test_what_needs_a_person_says_what_to_do(checkout, capsys):
    assert main(["data", "fetch", "jigsaw"]) == 2
    said = capsys.readouterr().err
    assert "jigsaw: cannot be downloaded: with an account at Kaggle" in said and "export JIGSAW=<folder>" in said
    assert main(["data", "fetch", "jigsav"]) == 2
    assert "did you mean 'jigsaw'" in capsys.readouterr().err
    assert main(["data", "fetch", "project-prompts"]) == 2
    assert "nothing to do, they are in the checkout" in capsys.readouterr().err


def test_what_only_a_browser_can_download_is_taken_from_there(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDETOX_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("JIGSAW", raising=False)
    with zipfile.ZipFile(tmp_path / "train.csv.zip", "w") as archive:
        archive.writestr("train.csv", "comment_text,toxic\nx,1\n")
    fetching.fetch("jigsaw", tmp_path / "train.csv.zip")
    assert catalogue.local_path("$JIGSAW/train.csv").read_text() == "comment_text,toxic\nx,1\n"


def test_what_a_person_has_downloaded_is_taken_instead(listed, server, tmp_path):
    listed({"README.md": README, "RTP-LX.zip": ENCRYPTED})
    given = tmp_path / "given"
    given.mkdir()
    (given / "RTP-LX.zip").write_bytes(ENCRYPTED)
    (given / "README.md").write_bytes(README)
    folder = fetching.fetch("rtp-lx", given)
    assert sorted(path.name for path in folder.iterdir()) == ["RTP_LX_DE.json", "RTP_LX_EN.json"] and not server.asked
    listed({"RTP-LX.zip": ENCRYPTED}, **{"RTP-LX": "0" * 64})
    with pytest.raises(UserError, match=r"RTP-LX\.zip has another sha256 than params/data\.yaml says"):
        fetching.fetch("rtp-lx", given)
    with pytest.raises(UserError, match="none: no such file or folder"):
        fetching.fetch("rtp-lx", tmp_path / "none")


def test_each_source_says_all_that_a_reader_needs(checkout):
    """Address, licence, citation and what to do; a citation is in the bibliography, a checksum is a checksum."""
    bibliography = (CHECKOUT / "book/references.bib").read_text("utf-8")
    for name, entry in catalogue.sources().items():
        assert entry.address and entry.licence and entry.how and entry.title, name
        assert entry.citation is None or f"{{{entry.citation}," in bibliography, name
        assert entry.fetchable or name in ("toxicity-pairwise", "jigsaw", "project-prompts"), name
        assert all(file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256) for file in entry.files), name
        assert entry.hub is None or entry.hub.revision is None or re.fullmatch("[0-9a-f]{40}", entry.hub.revision), name
    table = catalogue.table()
    assert "parallel-prompts: Parallel prompts\n  what:    200 multiway" in table
    assert "  cite:    jigsaw2017toxic in book/references.bib\n" in table and "None" not in table


@pytest.mark.parametrize("damage", ["crc", "stream", "no archive", "two of one name", "empty"])
def test_what_was_fetched_stays_where_the_new_is_damaged(listed, tmp_path, damage):
    listed({})
    archive, good = tmp_path / "new.zip", tmp_path / "good"
    good.mkdir()
    (good / "RTP_LX_EN.json").write_text('{"Prompt": "Two", "Index": 0}')
    folder = fetching.fetch("rtp-lx", good)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for name in ("a/RTP_LX_EN.json", "b/RTP_LX_EN.json") if damage == "two of one name" else ("RTP_LX_EN.json",):
            content.writestr(name, f"{name}, text of some length " * 20)
    raw = bytearray(archive.read_bytes())
    if damage in ("crc", "stream"):
        place = (
            raw.index(b"RTP_LX_EN.json") + len("RTP_LX_EN.json")
            if damage == "stream"
            else raw.index(b"PK\x01\x02") + 16
        )
        raw[place : place + 4] = b"\xff\xff\xff\xff"
    archive.write_bytes(b"no archive" if damage == "no archive" else raw)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"not a whole zip|two files of that name differ|nothing: no files there"):
        fetching.fetch("rtp-lx", tmp_path / "nothing" if damage == "empty" else archive)
    assert catalogue.fetched_folder("rtp-lx") == folder and [file.name for file in folder.iterdir()] == [
        "RTP_LX_EN.json"
    ]


def test_what_is_given_has_a_name(checkout, capsys):
    for given in ("", " ", "~no-such-user/x"):
        with pytest.raises(SystemExit):
            main(["data", "fetch", "rtp-lx", "--from", given])
    assert "argument --from: it is empty; name a file or folder" in capsys.readouterr().err
