"""A network for tests: a server on the loopback to which a process's requests to any server go, or none at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Every connection goes to the server at port PORT, and https becomes http.
REDIRECTED = """
import os, socket, sys
import requests, urllib.request

PORT = int(os.environ["STAND_IN_PORT"])
real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex")}
for name in real:
    def connect(self, address, name=name):
        return real[name](self, address if self.family == socket.AF_UNIX else ("127.0.0.1", PORT))
    setattr(socket.socket, name, connect)
socket.getaddrinfo = lambda host, port, *args, **kwargs: [
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port or 80))
]
request = requests.Session.request
requests.Session.request = lambda self, method, url, *args, **kwargs: request(
    self, method, url.replace("https://", "http://"), *args, **kwargs
)
open_url = urllib.request.OpenerDirector.open
def open_plain(self, wanted, *args, **kwargs):
    if isinstance(wanted, str):
        return open_url(self, wanted.replace("https://", "http://"), *args, **kwargs)
    wanted.full_url = wanted.full_url.replace("https://", "http://")
    return open_url(self, wanted, *args, **kwargs)
urllib.request.OpenerDirector.open = open_plain
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]
"""
# Names are not found and addresses not reached unless they are this machine's; `refused` is to be defined.
_LOCAL_ONLY = """
import os, socket, sys, time

find, real = socket.getaddrinfo, socket.socket.connect
HERE = (None, "localhost", "127.0.0.1", "::1", socket.gethostname())
socket.getaddrinfo = lambda host, *args, **kwargs: find(host, *args, **kwargs) if host in HERE else refused()
socket.socket.connect = lambda self, address: (
    real(self, address) if self.family == socket.AF_UNIX or address[0] in HERE else refused()
)
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]
"""
# A machine without a network.
ABSENT = (
    """
def refused():
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
"""
    + _LOCAL_ONLY
)
# A firewall that drops packets: nothing is refused and nothing answers. The limit is short for the test's sake.
SILENT = (
    """
import yolorep.hosts.reachability
yolorep.hosts.reachability.LIMIT = 0.2
def refused():
    time.sleep(600)
"""
    + _LOCAL_ONLY
)


@contextmanager
def served(files: dict[str, bytes]) -> Iterator[tuple[int, list[str]]]:
    """Serve files by the last part of a URL's path; yield the port, and the list of what is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, *, body: bool) -> None:
            asked.append(f"{self.headers['Host']}{self.path}")
            name = self.path.rpartition("/")[2]
            content = files.get(name)
            if "/releases/" in self.path and content is None:  # GitHub's list of a release's files
                content = json.dumps({"tag_name": "v7.0", "assets": [{"name": name} for name in files]}).encode()
            self.send_response(404 if content is None else 200)
            self.send_header("X-Error-Code", "RepoNotFound")  # how the hub says 404
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body:
                self.wfile.write(content or b"")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()
