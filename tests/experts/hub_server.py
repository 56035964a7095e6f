"""A hub on loopback that speaks as much of the Hub's HTTP API as `huggingface_hub` needs to create a repository, to
upload a folder (regular files and LFS) and to fetch it again. Repositories are dicts in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """`files[repo][name]`; `seen` are the requests with their authorization; `token` is what is accepted."""

    token: str
    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    listed: dict[str, int] = field(default_factory=dict)
    """Names that are listed beside those that exist, with their sizes."""


@contextlib.contextmanager
def running(token: str) -> Iterator[Hub]:
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        """Quiet."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self) -> None:
        body, path = self._read(), unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization", "")
        self.hub.seen.append((self.command, path, authorization))
        for pattern, work in ROUTES.items():
            if found := re.fullmatch(pattern, path):
                if authorization != f"Bearer {self.hub.token}" and not path.startswith("/lfs/"):
                    self._json({"error": f"Invalid credentials {authorization}"}, 401)
                    return
                getattr(self, work)(body, *found.groups())
                return
        self._json({"error": f"no route {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = _route

    # ---- routes ----

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if repo in self.hub.files:
            self._json({"error": "exists", "url": f"{self.hub.url}/{repo}"}, 409)
            return
        self.hub.files[repo] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.hub.private[repo] = str(wanted.get("visibility", wanted.get("private")))
        self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": "1"})

    def validate(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        self._json({"errors": [], "warnings": []}, 200 if text.startswith("---\n") else 400)

    def preupload(self, body: bytes, repo: str) -> None:
        files = json.loads(body)["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
        self._json(
            {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}
        )

    def batch(self, body: bytes, repo: str) -> None:
        objects = json.loads(body)["objects"]
        told = [{**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}} for one in objects]
        self._json({"transfer": "basic", "objects": told})

    def store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self._answer(200)

    def commit(self, body: bytes, repo: str) -> None:
        files = self.hub.files[repo]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def info(self, body: bytes, repo: str, _revision: str | None = None) -> None:
        if repo not in self.hub.files:
            self._answer(404, b"{}", X_Error_Code="RepoNotFound")
            return
        sizes = {name: len(data) for name, data in self.hub.files[repo].items()} | self.hub.listed
        siblings = [{"rfilename": name, "size": size, "blobId": "0" * 40} for name, size in sizes.items()]
        self._json({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": True, "downloads": 0})

    def tree(self, body: bytes, repo: str) -> None:
        self._json(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.hub.files.get(repo, {}).items()
            ]
        )

    def resolve(self, body: bytes, repo: str, name: str) -> None:
        data = self.hub.files.get(repo, {}).get(name)
        if data is None:
            self._answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._answer(200, data, ETag=etag, X_Repo_Commit=COMMIT, Content_Type="application/octet-stream")


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    r"/api/repos/create": "create",
    r"/api/validate-yaml": "validate",
    rf"/api/models/{REPO}/preupload/main": "preupload",
    rf"/api/models/{REPO}/commit/main": "commit",
    rf"/api/models/{REPO}/tree/\w+": "tree",
    rf"/api/models/{REPO}/revision/(\w+)": "info",
    rf"/api/models/{REPO}": "info",
    rf"/{REPO}\.git/info/lfs/objects/batch": "batch",
    r"/lfs/(\w+)": "store",
    rf"/{REPO}/resolve/\w+/(.+)": "resolve",
}
