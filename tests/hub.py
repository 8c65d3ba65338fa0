"""A Hugging Face Hub on this machine, in memory: what its clients read and write, its refusals, and its worst days

It fails in a `with hub.failing(mode)`: "closed" (nobody listens), "drop" (hangs up), "silent" (never answers),
"refuse" (403 to every write).
"""
import base64, hashlib, json, re, threading, time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

folders = {"models": "model", "datasets": "dataset"}
actions = "revision|auth-check|tree|paths-info|preupload|commit|refs"
repo_path = re.compile(rf"/api/(models|datasets)/([^/]+/[^/]+?)(?:/({actions})(/.*)?)?")
file_path = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def oid(content: bytes) -> str: return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    "Commits, newest last, each with all its files; `branches` points to them"
    readers: tuple | None = None
    gated: bool = False
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    def commit(self, files: dict, message="", branch="main") -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)} {time.time_ns()}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = self.at(branch) | files, sha
        self.messages.append(message)
        return sha

    def at(self, revision="main") -> dict: return self.commits.get(self.branches.get(revision, revision), {})


@dataclass
class Request:
    method: str
    path: str
    headers: dict
    body: bytes
    time: float


class Hub:
    "The repositories, every request, the requests it has no answer for, and the server's switches"
    def __init__(self, users: dict):
        self.users, self.repos, self.requests, self.unknown = users, {}, [], []  # users: {token: name}
        self.mode, self.at, self.left, self.port, self.awake = None, "", 0, 0, threading.Event()
        self.listen()

    @property
    def url(self): return f"http://127.0.0.1:{self.port}"

    def listen(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads, self.server.hub, self.port = True, self, self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.awake.set()
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def failing(self, mode: str, at="", times=float("inf")):
        "The worst of days: from the first request on that has `at` in its path, `times` requests fail"
        self.awake.clear()
        self.mode, self.at, self.left = mode, at, times
        if mode == "closed": self.close()
        try: yield
        finally:
            self.mode = None
            self.awake.set()
            if mode == "closed": self.listen()

    def mood(self, request: Request) -> str | None:
        "How this request fails, if it does"
        if self.at in request.path: self.at = ""
        if self.at or not self.left or self.mode == "refuse" and request.method != "POST": return None
        self.left -= 1
        return self.mode

    def add(self, kind: str, repo_id: str, *versions: dict, **kwargs) -> list[str]:
        "A repository with a commit for each version; their commits"
        repo = self.repos[kind, repo_id] = Repo(**kwargs)
        return [repo.commit(files) for files in versions]

    def asked(self, part: str) -> list[Request]: return [r for r in self.requests if part in r.path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args): pass

    def handle(self):
        try: super().handle()
        except OSError: pass

    def do_GET(self):
        hub, self.url = self.server.hub, urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "chunked" in self.headers.get("Transfer-Encoding", ""): self.body = self.chunks()
        hub.requests.append(Request(self.command, self.path, dict(self.headers), self.body, time.monotonic()))
        mood = hub.mood(hub.requests[-1])
        if mood == "refuse": return self.refuse(403, message="You may not write here.")
        if mood == "silent": hub.awake.wait()
        if mood:
            self.close_connection = True
            return
        self.answer()

    do_HEAD = do_POST = do_GET

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16): parts.append(self.rfile.read(size + 2)[:-2])
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), headers | {"Content_Type": "application/json"}
        self.send_response(status)
        for key, value in (headers | {"Content_Length": len(content)}).items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(content)

    def refuse(self, status: int, code="", message=""):
        headers = {"X_Error_Message": message} | ({"X_Error_Code": code} if code else {})
        self.reply({"error": message}, status, **headers)

    @property
    def user(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.server.hub.users.get(token, "nobody" if token else None)

    def answer(self):
        hub, path = self.server.hub, unquote(self.url.path)
        if self.user == "nobody": return self.refuse(401, message="Invalid credentials in Authorization header")
        if path == "/api/whoami-v2" and self.user: return self.reply({"type": "user", "name": self.user, "orgs": []})
        if path == "/api/whoami-v2": return self.refuse(401, message="Invalid username or password.")
        if path == "/api/validate-yaml": return self.reply({"warnings": [], "errors": []})
        if path == "/api/agent-harnesses": return self.reply({})
        if path == "/api/repos/create": return self.create(**json.loads(self.body))
        if m := file_path.fullmatch(path): return self.file(m[1] or "models", *m.groups()[1:])
        if m := repo_path.fullmatch(path): return self.repo(m[1], m[2], m[3] or "revision", (m[4] or "/main")[1:])
        hub.unknown.append((self.command, self.path))
        self.refuse(404, message="Sorry, we can't find the page you are looking for.")

    def create(self, name, organization=None, type="model", **_):
        hub, key = self.server.hub, (type or "model", f"{organization or self.user}/{name}")
        if not self.user: return self.refuse(401, message="Invalid username or password.")
        if organization not in (None, self.user): return self.refuse(403, message="You may not create a model here.")
        known = key in hub.repos
        if not known: hub.add(*key)
        self.reply({"url": f"{hub.url}/{key[1]}"}, 409 if known else 200)

    def find(self, folder: str, repo_id: str, revision: str, reading=False):
        "The repository and its files; None where a refusal has been sent instead"
        repo = self.server.hub.repos.get((folders[folder], repo_id))
        allowed = repo and (repo.readers is None or self.user in repo.readers)
        if not repo or not allowed and not repo.gated:
            self.refuse(404 if self.user else 401, "RepoNotFound", "Repository not found")
        elif reading and not allowed: self.refuse(403 if self.user else 401, "GatedRepo", "Access is restricted")
        elif repo.commits and revision not in repo.branches | repo.commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else: return repo, repo.at(revision)

    def file(self, folder, repo_id, revision, path):
        if not (found := self.find(folder, repo_id, revision, reading=True)): return
        repo, files = found
        if path not in files: return self.refuse(404, "EntryNotFound", "Entry not found")
        known = {"X_Repo_Commit": repo.branches.get(revision, revision), "ETag": f'"{oid(files[path])}"'}
        content, ranged = files[path], re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not ranged: return self.reply(content, **known)
        start, end = int(ranged[1]), min(int(ranged[2] or len(content)), len(content) - 1)
        self.reply(content[start:end + 1], 206, Content_Range=f"bytes {start}-{end}/{len(content)}", **known)

    def repo(self, folder, repo_id, what, rest):
        revision, _, inside = rest.partition("/") if what == "tree" else (rest, "", "")
        if not (found := self.find(folder, repo_id, revision, reading=what == "auth-check")): return
        repo, files = found
        if what == "auth-check": return self.reply(b"OK")
        entry = lambda name: {"type": "file", "path": name, "size": len(files[name]), "oid": oid(files[name])}
        if what == "tree":
            within = [name for name in files if name.startswith(inside and inside + "/")]
            if inside and not within: return self.refuse(404, "EntryNotFound", f"{inside} does not exist")
            return self.reply([entry(name) for name in sorted(within)])
        if what == "paths-info":
            asked = json.loads(self.body) if "json" in self.headers["Content-Type"] else parse_qs(self.body.decode())
            return self.reply([entry(name) for name in asked["paths"] if name in files])
        if what in ("preupload", "commit"): return self.write(repo, repo_id, what, revision, files)
        if what == "refs":
            heads = [dict(name=name, ref=f"refs/heads/{name}", targetCommit=sha) for name, sha in repo.branches.items()]
            return self.reply({"branches": heads, "converts": [], "tags": []})
        self.reply({"id": repo_id, "modelId": repo_id, "sha": repo.branches.get(revision, revision), "tags": [],
                    "private": bool(repo.readers) and not repo.gated, "gated": repo.gated and "manual",
                    "siblings": [{"rfilename": name} for name in sorted(files)]})

    def write(self, repo, repo_id, what, revision, files):
        if repo_id.split("/")[0] != self.user: return self.refuse(403, message="You may not write here.")
        if what == "preupload":
            return self.reply({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False,
                                          "oid": oid(files[f["path"]]) if f["path"] in files else None}
                                         for f in json.loads(self.body)["files"]]})
        lines = [json.loads(line) for line in self.body.splitlines()]
        self.server.hub.unknown += [("commit", line["key"]) for line in lines[1:] if line["key"] != "file"]
        values = [line["value"] for line in lines[1:] if line["key"] == "file"]
        new = {value["path"]: base64.b64decode(value["content"]) for value in values}
        sha = repo.commit(new, lines[0]["value"]["summary"], revision)
        self.reply({"commitUrl": f"{self.server.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True})
