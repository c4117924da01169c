"""A server that speaks the Hub's HTTP to the real client: enough for pushes, pulls, branches, tags and pull requests.

Large files go by the LFS protocol (basic transfer). Xet, which the real Hub prefers, is off: HF_HUB_DISABLE_XET=1. Every
answer of a named endpoint can be made to fail.
"""

import base64
import datetime
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "x" * 10
STATUS = {"500": 500, "401": 401, "403": 403, "429": 429}
LARGE = 10_000
"""Bytes from which on a file is a large one (the Hub: 10 MB, or by .gitattributes)."""


@dataclass
class Repo:
    private: bool
    commits: dict = field(default_factory=dict)  # oid -> (parent, {path: content})
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    pulls: list = field(default_factory=list)  # (title, ref)

    def commit(self, parent, files):
        oid = hashlib.sha1(repr((parent, len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[oid] = (parent, files)
        return oid

    def resolve(self, revision):
        pulls = {ref: oid for _, ref, oid in self.pulls}
        for known in (self.branches, self.tags, pulls):
            if revision in known:
                return known[revision]
        return revision if revision in self.commits else None


@dataclass
class Fault:
    endpoint: str
    kind: str  # 500, reset before, reset after, timeout, 401, 403, 429
    times: int = 1


class Hub:
    """State, faults and counts; `with hub.serve() as url:`."""

    def __init__(self):
        self.repos, self.objects = {}, {}
        self.lock = threading.RLock()
        self.reset()

    def reset(self):
        self.delay, self.rate = 0.0, float("inf")  # of the link: seconds an answer takes, bytes a second
        self.hang = 1.2  # seconds of a timeout: longer than the client waits in these tests
        self.faults, self.calls, self.sent, self.barrier = [], Counter(), Counter(), None

    def contents(self, name, branch="main"):
        """What the files of a branch hold, those that went by LFS too."""
        repo = self.repos[name]
        files = repo.commits[repo.branches[branch]][1]
        return {file: self.objects[held[1]] if isinstance(held, tuple) else held for file, held in files.items()}

    def snapshot(self):
        """Files and refs of all repositories: what a failed push must leave alone."""
        return {
            name: (
                {b: dict(r.commits[o][1]) for b, o in r.branches.items()},
                dict(r.branches), dict(r.tags), len(r.pulls),
            )
            for name, r in self.repos.items()
        }  # fmt: skip

    @contextmanager
    def serve(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub.url
        finally:
            server.shutdown()
            server.server_close()


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create repo", "POST", r"/api/repos/create"),
    ("validate yaml", "POST", r"/api/validate-yaml"),
    ("preupload", "POST", rf"/api/models/{REPO}/preupload/(?P<rev>.+)"),
    ("commit", "POST", rf"/api/models/{REPO}/commit/(?P<rev>.+)"),
    ("tree", "GET", rf"/api/models/{REPO}/tree/(?P<rev>[^/]+)"),
    ("refs", "GET", rf"/api/models/{REPO}/refs"),
    ("branch", "POST", rf"/api/models/{REPO}/branch/(?P<rev>.+)"),
    ("tag", "POST", rf"/api/models/{REPO}/tag/(?P<rev>.+)"),
    ("discussions", "GET", rf"/api/models/{REPO}/discussions"),
    ("delete branch", "DELETE", rf"/api/models/{REPO}/branch/(?P<rev>.+)"),
    ("info", "GET", rf"/api/models/{REPO}(?:/revision/(?P<rev>.+))?"),
    ("lfs batch", "POST", rf"/{REPO}\.git/info/lfs/objects/batch"),
    ("lfs upload", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    ("lfs verify", "POST", r"/lfs-verify"),
    ("resolve", "GET", rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)"),
]
ENDPOINTS = [name for name, _, _ in ROUTES]
"""All that a push may call."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do(self):
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        method = "GET" if self.command == "HEAD" else self.command
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        threading.Event().wait(self.hub.delay + len(raw) / self.hub.rate)
        for name, verb, pattern in ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match and verb == method:
                return self.answer(name, raw, {k: unquote(v) for k, v in match.groupdict().items() if v})
        return self.reply(404, {"error": f"no route {self.command} {self.path}"})

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do  # noqa: N815  the names of http.server

    def answer(self, name, raw, args):  # noqa: PLR0911  one step after the other
        hub = self.hub
        with hub.lock:
            hub.calls[name] += 1
            fault = next((f for f in hub.faults if f.endpoint == name and f.times), None)
            if fault:
                fault.times -= 1
        if fault and fault.kind in STATUS:
            return self.reply(STATUS[fault.kind], {"error": f"made to fail with {fault.kind}"})
        if fault and fault.kind == "reset before":
            return self.cut()
        if fault and fault.kind == "timeout":
            threading.Event().wait(hub.hang)
            return self.cut()
        if hub.barrier and name == "preupload":
            hub.barrier.wait(10)
        if name not in ("whoami", "validate yaml", "lfs upload", "lfs verify") and not self.allowed(args):
            return self.reply(401, {"error": "Repository Not Found"}, {"X-Error-Code": "RepoNotFound"})
        if name == "whoami" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "Invalid token"})
        with hub.lock:
            found = getattr(self, name.replace(" ", "_"))(raw, args)
        if fault and fault.kind == "reset after":
            return self.cut()
        return self.reply(*found)

    def allowed(self, args):
        repo = self.hub.repos.get(args.get("repo"))
        return repo is None or not repo.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def cut(self):
        self.close_connection = True
        self.connection.close()

    def reply(self, status, content, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # one method an endpoint; each returns status, content and perhaps headers

    def whoami(self, raw, args):
        return 200, {"type": "user", "id": "1", "name": "someone", "orgs": [], "auth": {}}

    def create_repo(self, raw, args):
        asked = json.loads(raw)
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if name in self.hub.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
        repo = self.hub.repos[name] = Repo(asked.get("private", False) or asked.get("visibility") == "private")
        repo.branches["main"] = repo.commit(None, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return 200, {"url": f"{self.hub.url}/{name}", "id": name, "name": name}

    def validate_yaml(self, raw, args):
        front = re.match(r"---\n(.*?)\n---\n", json.loads(raw)["content"], re.DOTALL)
        meta = yaml.safe_load(front[1]) if front else {}
        wrong = [k for k in ("license", "pipeline_tag", "library_name") if not isinstance(meta.get(k, ""), str)]
        errors = [{"message": f'"{key}" must be a string'} for key in wrong]
        return (400 if errors else 200), {"errors": errors, "warnings": []}

    def preupload(self, raw, args):
        repo = self.hub.repos[args["repo"]]
        there = repo.commits[repo.resolve(args["rev"])][1]
        files = []
        for file in json.loads(raw)["files"]:
            mode = "lfs" if file["size"] >= LARGE or file["path"].endswith(".safetensors") else "regular"
            old = there.get(file["path"])
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": old and oid_of(old)})
        return 200, {"files": files}

    def lfs_batch(self, raw, args):
        found = []
        for item in json.loads(raw)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/lfs-verify", "header": {}},
            }
            found.append(dict(item) if item["oid"] in self.hub.objects else {**item, "actions": actions})
        return 200, {"transfer": "basic", "objects": found}

    def lfs_upload(self, raw, args):
        assert hashlib.sha256(raw).hexdigest() == args["oid"]
        self.hub.objects[args["oid"]] = raw
        self.hub.sent[args["oid"]] += len(raw)
        return 200, {}

    def lfs_verify(self, raw, args):
        return (200 if json.loads(raw)["oid"] in self.hub.objects else 404), {}

    def commit(self, raw, args):
        repo = self.hub.repos[args["repo"]]
        head, *lines = [json.loads(line) for line in raw.splitlines()]
        parent = head["value"].get("parentCommit")
        tip = repo.resolve(args["rev"])
        if parent and parent != tip:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        files = dict(repo.commits[tip][1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.hub.sent["in commits"] += len(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = ("lfs", value["oid"])
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        oid = repo.commit(tip, files)
        link = None
        if "create_pr" in self.query:
            ref = f"refs/pr/{len(repo.pulls) + 1}"
            repo.pulls.append((head["value"]["summary"], ref, oid))
            link = f"{self.hub.url}/{args['repo']}/discussions/{len(repo.pulls)}"
        else:
            repo.branches[args["rev"]] = oid
        url = f"{self.hub.url}/{args['repo']}/commit/{oid}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": link}

    def tree(self, raw, args):
        repo = self.hub.repos[args["repo"]]
        revision = repo.resolve(args["rev"])
        if revision is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        found = []
        for path, content in repo.commits[revision][1].items():
            item = {"type": "file", "path": path, "oid": oid_of(content), "size": self.size(content)}
            if isinstance(content, tuple):
                item["lfs"] = {"oid": content[1], "size": item["size"], "pointerSize": 130}
            found.append(item)
        return 200, found

    def size(self, content):
        return len(self.hub.objects[content[1]] if isinstance(content, tuple) else content)

    def refs(self, raw, args):
        if args["repo"] not in self.hub.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        repo = self.hub.repos[args["repo"]]

        def listed(kind, refs):
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": o} for n, o in refs.items()]

        return 200, {"branches": listed("heads", repo.branches), "converts": [], "tags": listed("tags", repo.tags)}

    def branch(self, raw, args):
        repo = self.hub.repos[args["repo"]]
        if args["rev"] in repo.branches:
            return 409, {"error": "Reference already exists"}
        asked = json.loads(raw or b"{}") or {}
        repo.branches[args["rev"]] = repo.resolve(asked.get("startingPoint", "main"))
        return 200, {}

    def delete_branch(self, raw, args):
        self.hub.repos[args["repo"]].branches.pop(args["rev"])
        return 200, {}

    def tag(self, raw, args):
        repo, name = self.hub.repos[args["repo"]], json.loads(raw)["tag"]
        if name in repo.tags:
            return 409, {"error": "Tag reference exists already"}
        repo.tags[name] = repo.resolve(args["rev"])
        return 200, {}

    def discussions(self, raw, args):
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        pulls = self.hub.repos[args["repo"]].pulls
        found = [
            {"num": n, "title": title, "status": "open", "isPullRequest": True, "author": {"name": "someone"},
             "createdAt": now, "repo": {"name": args["repo"], "type": "model"}}
            for n, (title, _, _) in enumerate(pulls, 1)
        ]  # fmt: skip
        return 200, {"discussions": found, "count": len(found), "start": 0}

    def info(self, raw, args):
        repo = self.hub.repos.get(args["repo"])
        if repo is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        oid = repo.resolve(args.get("rev", "main"))
        if oid is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        siblings = [{"rfilename": path} for path in repo.commits[oid][1]]
        return 200, {"id": args["repo"], "modelId": args["repo"], "sha": oid, "private": repo.private,
                     "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip

    def resolve(self, raw, args):
        repo = self.hub.repos.get(args["repo"])
        oid = repo and repo.resolve(args["rev"])
        content = oid and repo.commits[oid][1].get(args["path"])
        if content is None:
            code = "EntryNotFound" if oid else "RepoNotFound"
            return 404, {"error": "not found"}, {"X-Error-Code": code}
        body = self.hub.objects[content[1]] if isinstance(content, tuple) else content
        return 200, body, {"ETag": f'"{oid_of(content)}"', "X-Repo-Commit": oid}


def oid_of(content):
    """Git's blob id; of a large file that of its pointer, as the Hub gives it."""
    if isinstance(content, tuple):
        return hashlib.sha1(content[1].encode()).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
