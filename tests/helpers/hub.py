"""A Hugging Face Hub in miniature on 127.0.0.1: enough of its HTTP for the real client to fetch and to push."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

KINDS = ("models", "datasets")
TOKEN, READING_TOKEN = "hf_test", "hf_read"


class Hub(ThreadingHTTPServer):
    """Serves `root/models/<owner>/<name>/…` and `root/datasets/<owner>/<name>/…`.

    A file whose name is in `cut_off` breaks off half-way, and every attempt to resume it breaks off at once.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.cut_off, self.requests = root, set(), []
        self.private: dict[str, bool] = {}  # of repositories, as they were asked for
        for kind in KINDS:
            (root / kind).mkdir(parents=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, files: dict[str, bytes], kind: str = "models") -> Path:
        """Put files into a repository, which is made if need be; returns its folder."""
        folder = self.root / kind / repo
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    def add_folder(self, repo: str, folder: Path, kind: str = "models") -> Path:
        """Put all files of a folder into a repository."""
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return self.add(repo, {name: path.read_bytes() for name, path in files.items()}, kind)


@contextlib.contextmanager
def serving(root: Path):
    """A running `Hub` over `root`."""
    server = Hub(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_client_at(endpoint: str, cache: Path, monkeypatch) -> None:
    """Make huggingface_hub in this process talk to `endpoint`, cache below `cache`, and know no token."""
    from huggingface_hub import close_session, constants

    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_XET_CACHE": str(cache / "xet"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "AGENT_HARNESSES_PATH": str(cache / "agents.json"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    # The client waits between its attempts to resume; the attempts themselves still happen.
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    close_session()


class _Handler(BaseHTTPRequestHandler):
    """One request; paths are those of the real Hub."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._read()

    def do_GET(self):
        self._read()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"POST {self.path}")
        match self._parts():
            case ["api", "validate-yaml"]:
                self._json({})
            case _ if self.headers.get("Authorization") == f"Bearer {READING_TOKEN}":
                self._error(403, None, "You don't have the rights to create a model under the namespace.")
            case _ if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._error(401, None, "Invalid username or password.")
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", kind, owner, name, "preupload", _]:
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
                self._json({"files": modes} if self._repo(kind, owner, name) else {"files": []})
            case ["api", kind, owner, name, "commit", _]:
                self._commit(kind, f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
            case _:
                self._error(404, "EntryNotFound")

    def _read(self):
        self.server.requests.append(f"{self.command} {self.path}")
        match self._parts():
            case ["api", kind, owner, name, "revision", revision] if repo := self._repo(kind, owner, name):
                if revision not in ("main", _commit_of(repo)):
                    self._error(404, "RevisionNotFound")
                    return
                siblings = [{"rfilename": path} for path in _files(repo)]
                self._json({"id": f"{owner}/{name}", "sha": _commit_of(repo), "siblings": siblings})
            case ["api", kind, owner, name, "tree", _] if repo := self._repo(kind, owner, name):
                self._json([_entry(path, file) for path, file in _files(repo).items()])
            case ["datasets", owner, name, "resolve", _, *path] if repo := self._repo("datasets", owner, name):
                self._file(repo, "/".join(path))
            case [owner, name, "resolve", _, *path] if repo := self._repo("models", owner, name):
                self._file(repo, "/".join(path))
            case _:
                self._error(404, "RepoNotFound")

    def _parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _repo(self, kind: str, owner: str, name: str) -> Path | None:
        folder = self.server.root / kind / owner / name
        return folder if kind in KINDS and folder.is_dir() else None

    def _create(self, wanted: dict):
        repo = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        folder = self.server.root / "models" / repo
        status = 409 if folder.is_dir() else 200
        self.server.private.setdefault(repo, wanted.get("private") or wanted.get("visibility") == "private")
        folder.mkdir(parents=True, exist_ok=True)
        self._json({"url": f"{self.server.endpoint}/{repo}", "name": repo}, status)

    def _commit(self, kind: str, repo: str, lines: list[dict]):
        added = [line["value"] for line in lines if line["key"] == "file"]
        folder = self.server.add(repo, {file["path"]: base64.b64decode(file["content"]) for file in added}, kind)
        for line in lines:
            if line["key"] == "deletedFile":
                (folder / line["value"]["path"]).unlink()
        commit = _commit_of(folder)
        self._json({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{commit}", "commitOid": commit})

    def _file(self, repo: Path, name: str):
        file = repo / name
        if not file.is_file():
            return self._error(404, "EntryNotFound")
        content, cut = file.read_bytes(), file.name in self.server.cut_off
        if cut and "Range" in self.headers:
            self.close_connection = True
            return None
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_digest(content)}"')
        self.send_header("X-Repo-Commit", _commit_of(repo))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut
        return None

    def _json(self, value, status: int = 200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _error(self, status: int, code: str | None, message: str = "not found"):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _files(repo: Path) -> dict[str, Path]:
    return {path.relative_to(repo).as_posix(): path for path in sorted(repo.rglob("*")) if path.is_file()}


def _entry(name: str, file: Path) -> dict:
    return {"type": "file", "path": name, "size": file.stat().st_size, "oid": _digest(file.read_bytes())}


def _commit_of(repo: Path) -> str:
    """The content of a repository as a commit hash: another content is another commit."""
    return _digest("".join(f"{name} {_digest(file.read_bytes())}\n" for name, file in _files(repo).items()).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
