"""A front before an S3 server that misbehaves on request: 503s, lost answers, slowness, an outage.

It also speaks Google's dialect: Cloud Storage's XML protocol is that of S3 but for the header of a condition.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_NOT_PASSED_ON = frozenset({"connection", "transfer-encoding", "keep-alive", "date", "server"})

PASS, BUSY, LOSE, CUT = "pass", "busy", "lose", "cut"
"""What is done with a request: handed on; answered 503; handed on and its answer dropped; dropped at once."""

Script = Callable[[str, str], str]
"""Decides by method and path."""


class Front:
    def __init__(self, backend: str) -> None:
        self.backend = urlsplit(backend)
        self.script: Script = lambda _method, _path: PASS
        self.delay_s = 0.0
        self.drop_headers: frozenset[str] = frozenset()
        """Headers that the server behind does not get to see, in small letters."""
        self.seen: dict[str, int] = {}
        self._lock = threading.Lock()
        self._server = self._listen(0)
        self.port = int(self._server.server_address[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def go_away(self) -> None:
        """Nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()

    def come_back(self) -> None:
        self._server = self._listen(self.port)

    def count(self, what: str) -> None:
        with self._lock:
            self.seen[what] = self.seen.get(what, 0) + 1

    def _listen(self, port: int) -> ThreadingHTTPServer:
        front = self

        class Handler(_Handler):
            owner = front

        server = _Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    owner: Front
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        front = self.owner
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        verdict = front.script(self.command, self.path)
        front.count(verdict)
        if front.delay_s:
            time.sleep(front.delay_s)
        if verdict == CUT:
            self.close_connection = True
            return
        if verdict == BUSY:
            self._answer(503, [], b"<Error><Code>SlowDown</Code><Message>slower</Message></Error>")
            return
        status, headers, content = self._handed_on(body)
        if verdict == LOSE:
            self.close_connection = True
            return
        self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815 - the library's names

    def _handed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        dropped = self.owner.drop_headers
        headers = {name: text for name, text in self.headers.items() if name.lower() not in dropped}
        google = {name.lower(): value for name, value in headers.items()}
        if google.get("x-goog-if-generation-match") == "0":
            headers["If-None-Match"] = "*"
        if self.command in {"GET", "HEAD"} and not google.get("authorization", "").startswith("AWS4"):
            # The server behind knows S3's signatures alone, and checks none.
            headers["Authorization"] = (
                "AWS4-HMAC-SHA256 Credential=google/20260101/us-east-1/s3/aws4_request, "
                "SignedHeaders=host, Signature=0"
            )
        path, mark, query = self.path.partition("?")
        for escaped, sign in (("%2D", "-"), ("%2E", "."), ("%5F", "_")):
            path = path.replace(escaped, sign)  # as the server behind does not
        connection = http.client.HTTPConnection(
            self.owner.backend.hostname or "", self.owner.backend.port, timeout=60
        )
        try:
            connection.request(self.command, path + mark + query, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        lengths = False
        for name, value in headers:
            if name.lower() in _NOT_PASSED_ON:
                continue
            lengths = lengths or name.lower() == "content-length"
            self.send_header(name, value)
        if not lengths:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Silence."""


@contextmanager
def front_before(backend: str) -> Iterator[Front]:
    front = Front(backend)
    try:
        yield front
    finally:
        front.go_away()
