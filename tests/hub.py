"""A stub of the Hugging Face Hub on this machine: repositories that clients read from and commit to."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class StubHub:
    """Serves dataset and model repositories, and takes commits; ``files`` and ``committed`` are name -> content.

    ``private`` repositories want a token; everything that a client sent is in ``received``, headers included.
    """

    def __init__(self, files: dict[str, bytes] | None = None, status: int = 200):
        self.files = files or {}
        self.status = status  # of every answer about a repository, where it is not 200
        self.committed: dict[str, bytes] = {}
        self.created: list[dict] = []
        self.received: list[tuple[str, str, dict[str, str], bytes]] = []
        self._stored: dict[str, bytes] = {}  # large files, by their sha256
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else b""
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                outer.received.append((self.command, self.path, dict(self.headers), body))
                outer._serve(self, unquote(urlsplit(self.path).path), body)

            do_GET = do_POST = do_PUT = do_HEAD = _answer

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> StubHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, handler, path: str, body: bytes) -> None:
        def send(content, status=200, **headers):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(data)

        if self.status == 403:
            return send({"error": "gated"}, 403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if self.status != 200:
            return send({"error": "no"}, self.status, X_Error_Code="RepoNotFound")
        if "/resolve/" in path:
            name = path.split("/resolve/", 1)[1].split("/", 1)[1]
            if name not in self.files:
                return send(b"", 404, X_Error_Code="EntryNotFound")
            content = self.files[name]
            return send(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        if path.startswith("/api/repos/create"):
            self.created.append(json.loads(body))
            return send({"url": f"{self.address}/someone/model", "id": "someone/model"})
        if "/preupload/" in path:
            modes = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular"
                     for file in json.loads(body)["files"]}  # fmt: skip
            wanted = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            return send({"files": wanted})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [{"oid": entry["oid"], "size": entry["size"],
                        "actions": {"upload": {"href": f"{self.address}/store/{entry['oid']}"}}}
                       for entry in json.loads(body)["objects"]]  # fmt: skip
            return send({"transfer": "basic", "objects": objects})
        if path.startswith("/store/"):
            self._stored[path.rsplit("/", 1)[1]] = body
            return send(b"")
        if "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.committed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    self.committed[entry["value"]["path"]] = self._stored[entry["value"]["oid"]]
            return send({"commitUrl": f"{self.address}/someone/model/commit/{COMMIT}", "commitOid": COMMIT,
                         "pullRequestUrl": None, "success": True})  # fmt: skip
        if path.startswith("/api/validate-yaml"):
            return send({"warnings": [], "errors": []})
        if "/tree/" in path:
            return send([{"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                         for name, content in self.files.items()])  # fmt: skip
        if path.startswith(("/api/datasets/", "/api/models/")):
            return send({"id": "someone/set", "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": [],
                         "siblings": [{"rfilename": name} for name in self.files]})  # fmt: skip
        return send({"error": f"the stub does not know {handler.command} {path}"}, 404)
