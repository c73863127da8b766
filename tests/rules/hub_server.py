"""A Hugging Face Hub on this machine: the few requests that making, filling and reading a repository take."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_of_the_test"


class FakeHub:
    """`repos` holds the files of every repository; `private` those that were made private; `asked` each request."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        handler = type("HubHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self.hub.asked.append(f"HEAD {self.path}")
        found = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)", self.path)
        repo, revision, file = found.groups() if found else ("", "", "")
        if repo not in self.hub.repos:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        commit, files = self.hub.commit(repo), self.hub.repos[repo]
        if revision not in ("main", commit):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if file not in files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        return self.answer(200, {"X-Repo-Commit": commit, "ETag": etag}, files[file])

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/main.*", self.path):
            return self.reply(
                {"id": found[1], "sha": self.hub.commit(found[1])}
            )  # old clients ask before a commit
        return self.do_HEAD()

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {})
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.reply({})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.reply({"files": files})
        repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.hub.commit(repo)
        return self.reply({"commitUrl": f"{self.hub.address}/{repo}/commit/{commit}", "commitOid": commit})

    def create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        known = repo in self.hub.repos
        self.hub.repos.setdefault(repo, {})
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(repo)
        self.reply({"url": f"{self.hub.address}/{repo}"}, 409 if known else 200)

    def reply(self, content: Any, status: int = 200) -> None:
        self.answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
