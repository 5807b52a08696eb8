"""A Hugging Face Hub on this machine: what huggingface_hub and `datasets` need of it, with faults on demand.

It speaks repositories, branches, pull requests, commits, listings, downloads and Git LFS (whole or in parts), not Xet.
Everything is in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopbackTokenThatMayWrite"
PAGE = 4
"""Entries in a page of a listing."""

ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Blob:
    """A file in a commit; `lfs` is the sha256 it is stored under."""

    size: int
    oid: str
    content: bytes = b""
    lfs: str | None = None


@dataclass
class Repo:
    """Commits by id, and where branches and pull requests stand."""

    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, ref: str, tree: dict[str, Blob], message: str) -> str:
        text = f"{len(self.commits)} {ref} {sorted((p, b.oid) for p, b in tree.items())}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = tree
        self.refs[ref] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def tree(self, revision: str = "main") -> dict[str, Blob]:
        return self.commits[self.resolve(revision)]


@dataclass
class Fault:
    """Answer requests that match with a status."""

    method: str
    path: str
    status: int
    times: int
    message: str


class RefusalError(Exception):
    """Ends a request with an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def regular(content: bytes) -> Blob:
    return Blob(len(content), git_hash(content), content)


class Hub:
    """The server's content, what it was asked, and what it is to do wrong.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        requests: (method, path) of every request.
        received: sha256 names of the LFS files that were sent whole, in order, repeats included.
        part_size: LFS files above this many bytes are asked for in parts.
        before_commit: called once, when the next commit arrives, before it is looked at.
        corrupt: whether LFS files are stored with a byte changed.
        cut: LFS files whose connection is cut after half of them.
        stall_after: LFS files to take whole; of later ones half is read, then nothing until `release` is set.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.received: list[str] = []
        self.errors: list[str] = []
        self.namespaces = {"me", "lab"}
        self.part_size = 1 << 40
        self.before_commit: Callable[[], object] | None = None
        self.corrupt = False
        self.cut = 0
        self.stall_after: int | None = None
        self.stalled, self.release = threading.Event(), threading.Event()
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._started = 0
        self._whole = threading.Semaphore(0)

    def fail(self, method: str, path: str, status: int, times: int = 1000, message: str = "") -> None:
        """Answer the next requests whose path matches with a status."""
        self._faults.append(Fault(method, path, status, times, message))

    def heal(self) -> None:
        """Do nothing wrong any more."""
        self._faults.clear()
        self.corrupt, self.stall_after = False, None

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self._faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def create(self, repo_id: str, private: bool = False) -> Repo:
        repo = self.repos[repo_id] = Repo(private)
        repo.commit("main", {".gitattributes": regular(ATTRIBUTES)}, "initial commit")
        return repo

    def push_by_hand(self, repo_id: str, path: str, content: bytes, ref: str = "main") -> str:
        """Commit a file as another user would."""
        repo = self.repos[repo_id]
        return repo.commit(ref, {**repo.tree(ref), path: regular(content)}, "by hand")

    def content(self, blob: Blob) -> bytes:
        return blob.content if blob.lfs is None else self.lfs[blob.lfs]

    def names(self, repo_id: str, revision: str = "main") -> set[str]:
        return set(self.repos[repo_id].tree(revision)) - {".gitattributes"}

    def fate(self) -> str:
        """Decide what becomes of an upload that starts now; nothing special by default."""
        with self.lock:
            self._started += 1
            if self.cut:
                self.cut -= 1
                return "cut"
            return "" if self.stall_after is None or self._started <= self.stall_after else "stall"

    def store(self, oid: str, content: bytes) -> None:
        with self.lock:
            self.lfs[oid] = bytes([content[0] ^ 1]) + content[1:] if self.corrupt else content
            self.received.append(oid)
        self._whole.release()

    def stall(self) -> None:
        """Wait until all uploads that may go through did, tell the test, and wait for it."""
        for _ in range(self.stall_after or 0):
            self._whole.acquire(timeout=20)
        self.stalled.set()
        self.release.wait(20)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_) -> None: ...

    def do_GET(self):
        self.serve("GET")

    def do_HEAD(self):
        self.serve("HEAD")

    def do_POST(self):
        self.serve("POST")

    def do_PUT(self):
        self.serve("PUT")

    def serve(self, method: str) -> None:
        url = urlsplit(self.path)
        path, self.query = url.path, parse_qs(url.query)
        with self.hub.lock:
            self.hub.requests.append((method, path))
        try:
            self.route(method, path)
        except RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message, "X-Request-Id": "loopback"}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.answer({"error": refusal.message}, refusal.status, headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            self.hub.errors.append(f"{method} {path}: {error!r}")
            raise

    def route(self, method: str, path: str) -> None:
        if fault := self.hub.fault(method, path):
            self.body()
            raise RefusalError(fault.status, fault.message or f"fault {fault.status}")
        for verb, pattern, action in ROUTES:
            if verb in (method, "GET" if method == "HEAD" else "") and (match := re.fullmatch(pattern, path)):
                action(self, *map(unquote, match.groups()))
                return
        self.body()
        raise RefusalError(404, f"no such page: {path}")

    def body(self, limit: int | None = None) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        size = int(self.headers.get("Content-Length") or 0)
        size = size if limit is None else min(limit, size)
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionError("the client is gone")
        return content

    def answer(self, value: object = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = b"" if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # who may do what

    def authorize(self, *, write: bool = False) -> bool:
        header = self.headers.get("Authorization")
        if header is not None and header != f"Bearer {TOKEN}":
            raise RefusalError(401, "Invalid credentials in Authorization header")
        if write and header is None:
            raise RefusalError(401, "Invalid username or password.")
        return header is not None

    def repo(self, repo_id: str, *, write: bool = False) -> Repo:
        known = self.authorize(write=write)
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not known):
            raise RefusalError(404, "Repository not found", "RepoNotFound")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        if oid := repo.resolve(revision):
            return oid
        raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # the pages

    def whoami(self) -> None:
        if not self.authorize():
            raise RefusalError(401, "Invalid username or password.")
        self.answer({"type": "user", "name": "me", "orgs": [{"name": "lab"}], "auth": {"type": "access_token"}})

    def create(self) -> None:
        asked = json.loads(self.body())
        self.authorize(write=True)
        namespace = asked.get("organization") or "me"
        repo_id = f"{namespace}/{asked['name']}"
        if namespace not in self.hub.namespaces:
            raise RefusalError(403, f'You don\'t have the rights to create a dataset under the namespace "{namespace}"')
        if repo_id in self.hub.repos:
            raise RefusalError(409, "You already created this dataset repo")
        self.hub.create(repo_id, asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer({"url": f"{self.hub.endpoint}/datasets/{repo_id}"})

    def validate(self) -> None:
        match = re.match(r"---\n(.*?)\n---\n", json.loads(self.body())["content"], re.DOTALL)
        try:
            known = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as error:
            self.answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        missing = {"license", "configs", "dataset_info"} - set(known)
        self.answer({"errors": [], "warnings": [{"message": f"no {m}"} for m in sorted(missing)]})

    def info(self, repo_id: str, revision: str = "main") -> None:
        repo = self.repo(repo_id)
        oid = self.commit_of(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[oid])]
        self.answer({"id": repo_id, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []})

    def branch(self, repo_id: str, name: str) -> None:
        start = json.loads(self.body() or b"{}").get("startingPoint", "main")
        repo = self.repo(repo_id, write=True)
        if name in repo.refs:
            raise RefusalError(409, "Reference already exists")
        repo.refs[name] = self.commit_of(repo, start)
        self.answer({})

    def refs(self, repo_id: str) -> None:
        repo = self.repo(repo_id)
        entries = [
            {"name": n, "ref": n if n.startswith("refs/") else f"refs/heads/{n}", "targetCommit": c}
            for n, c in repo.refs.items()
        ]
        pulls = [e for e in entries if e["ref"].startswith("refs/pr/")]
        branches = [e for e in entries if e not in pulls]
        self.answer({"branches": branches, "tags": [], "converts": [], "pullRequests": pulls})

    def tree(self, repo_id: str, revision: str, folder: str = "") -> None:
        repo = self.repo(repo_id)
        files = repo.commits[self.commit_of(repo, revision)]
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        if folder and not any(p.startswith(prefix) for p in files):
            raise RefusalError(404, f"{folder} does not exist", "EntryNotFound")
        entries = [e for e in listing(files) if e["path"].startswith(prefix)]
        if not recursive:
            entries = [e for e in entries if "/" not in e["path"].removeprefix(prefix)]
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            rest = f"recursive={recursive}&expand=False&cursor={start + PAGE}"
            headers["Link"] = f'<{self.hub.endpoint}{urlsplit(self.path).path}?{rest}>; rel="next"'
        self.answer(entries[start : start + PAGE], headers=headers)

    def paths_info(self, repo_id: str, revision: str) -> None:
        body = self.body().decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        repo = self.repo(repo_id)
        entries = listing(repo.commits[self.commit_of(repo, revision)])
        self.answer([e for e in entries if e["path"] in paths])

    def preupload(self, repo_id: str, revision: str) -> None:
        asked = json.loads(self.body())["files"]
        files = self.repo(repo_id, write=True).tree(revision)
        modes = []
        for entry in asked:
            old = files.get(entry["path"])
            mode = "lfs" if entry["path"].endswith(".parquet") else "regular"
            modes.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False})
            if old:
                modes[-1]["oid"] = old.lfs or old.oid
        self.answer({"files": modes})

    def batch(self, repo_id: str) -> None:
        asked = json.loads(self.body())
        self.repo(repo_id, write=True)
        self.answer({"transfer": "basic", "objects": [self.upload(entry) for entry in asked["objects"]]})

    def upload(self, entry: dict) -> dict:
        """Say where an LFS file goes; nowhere when it is there."""
        oid, size = entry["oid"], entry["size"]
        if oid in self.hub.lfs:
            return entry
        here = f"{self.hub.endpoint}/lfs/{oid}"
        action: dict = {"href": here}
        if size > self.hub.part_size:
            n_parts = -(-size // self.hub.part_size)
            parts = {f"{i + 1:05d}": f"{here}/{i + 1}" for i in range(n_parts)}
            action = {"href": f"{here}/complete", "header": {"chunk_size": str(self.hub.part_size), **parts}}
        return {**entry, "actions": {"upload": action, "verify": {"href": f"{self.hub.endpoint}/lfs-verify"}}}

    def put(self, oid: str) -> None:
        if fate := self.hub.fate():
            self.body(int(self.headers["Content-Length"]) // 2)
            if fate == "stall":
                self.hub.stall()
            raise ConnectionError
        self.hub.store(oid, self.body())
        self.answer()

    def put_part(self, oid: str, number: str) -> None:
        self.hub.parts.setdefault(oid, {})[int(number)] = self.body()
        self.answer(headers={"ETag": f'"{oid[:8]}-{number}"'})

    def complete(self, oid: str) -> None:
        parts = json.loads(self.body())["parts"]
        known = self.hub.parts.pop(oid)
        assert [p["etag"] for p in parts] == [f'"{oid[:8]}-{n}"' for n in sorted(known)]
        self.hub.store(oid, b"".join(known[n] for n in sorted(known)))
        self.answer({})

    def verify(self) -> None:
        asked = json.loads(self.body())
        self.authorize(write=True)
        if len(self.hub.lfs.get(asked["oid"], b"")) != asked["size"]:
            raise RefusalError(400, "size differs")
        self.answer({})

    def commit(self, repo_id: str, revision: str) -> None:
        header, *operations = [json.loads(line) for line in self.body().splitlines()]
        repo = self.repo(repo_id, write=True)
        if hook := self.hub.before_commit:
            self.hub.before_commit = None
            hook()
        head = self.commit_of(repo, revision)
        create_pr = self.query.get("create_pr") == ["1"]
        parent = header["value"].get("parentCommit")
        if parent and parent != head and not create_pr:
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[parent or head])
        for operation in operations:
            self.apply(files, operation["key"], operation["value"])
        number = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
        ref = f"refs/pr/{number}" if create_pr else revision
        oid = repo.commit(ref, files, header["value"]["summary"])
        page = f"{self.hub.endpoint}/datasets/{repo_id}"
        made = {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}"}
        self.answer(made | ({"pullRequestUrl": f"{page}/discussions/{number}"} if create_pr else {}))

    def apply(self, files: dict[str, Blob], kind: str, value: dict) -> None:
        if kind == "file":
            files[value["path"]] = regular(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            if value["oid"] not in self.hub.lfs:
                raise RefusalError(400, f"LFS file {value['oid']} was never uploaded")
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {value['size']}\n"
            stored = self.hub.lfs[value["oid"]]
            actual = hashlib.sha256(stored).hexdigest()
            self.hub.lfs[actual] = stored
            files[value["path"]] = Blob(len(stored), git_hash(pointer.encode()), lfs=actual)
        elif kind == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise RefusalError(400, f"unknown operation {kind}")

    def download(self, repo_id: str, revision: str, path: str) -> None:
        repo = self.repo(repo_id)
        oid = self.commit_of(repo, revision)
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        blob = repo.commits[oid].get(path)
        if blob is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        content = self.hub.content(blob)
        headers["ETag"] = f'"{blob.lfs or blob.oid}"'
        if blob.lfs:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self.answer(content[start : end + 1], 206, headers)
            return
        self.answer(content, headers=headers | {"Content-Length": str(len(content))})


def listing(files: dict[str, Blob]) -> list[dict]:
    """List files and folders as the Hub does."""
    folders = {"/".join(p.split("/")[:i]) for p in files for i in range(1, p.count("/") + 1)}
    entries: list[dict] = [{"type": "directory", "oid": git_hash(f.encode()), "size": 0, "path": f} for f in folders]
    for path, blob in files.items():
        lfs = {"lfs": {"oid": blob.lfs, "size": blob.size, "pointerSize": 134}} if blob.lfs else {}
        entries.append({"type": "file", "oid": blob.oid, "size": blob.size, "path": path, **lfs})
    return sorted(entries, key=lambda e: e["path"])


ID = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", f"/api/datasets/{ID}", Handler.info),
    ("GET", f"/api/datasets/{ID}/revision/([^/]+)", Handler.info),
    ("POST", f"/api/datasets/{ID}/branch/([^/]+)", Handler.branch),
    ("GET", f"/api/datasets/{ID}/refs", Handler.refs),
    ("GET", f"/api/datasets/{ID}/tree/([^/]+)", Handler.tree),
    ("GET", f"/api/datasets/{ID}/tree/([^/]+)/(.+)", Handler.tree),
    ("POST", f"/api/datasets/{ID}/paths-info/([^/]+)", Handler.paths_info),
    ("POST", f"/api/datasets/{ID}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"/datasets/{ID}\\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(\w+)", Handler.put),
    ("PUT", r"/lfs/(\w+)/(\d+)", Handler.put_part),
    ("POST", r"/lfs/(\w+)/complete", Handler.complete),
    ("POST", "/lfs-verify", Handler.verify),
    ("POST", f"/api/datasets/{ID}/commit/([^/]+)", Handler.commit),
    ("GET", f"/datasets/{ID}/resolve/([^/]+)/(.+)", Handler.download),
]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_) -> None: ...


@contextmanager
def hub_server():
    """Run a Hub on a free port of this machine until the block ends."""
    hub = Hub()
    with Server(("127.0.0.1", 0), partial(Handler, hub)) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.release.set()
            server.shutdown()
            thread.join(10)
