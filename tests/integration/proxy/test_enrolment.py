"""A proxy enrols over HTTP, with a server that is a few lines."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy_worker.config import load_enrolment
from proxy_worker.enrol import enrol, enrol_with_file
from proxy_worker.errors import EnrolmentError, ServerUnavailableError, SetupError
from proxy_worker.identity import load_or_create_identity

ANSWER = {"proxy_id": "p-1", "server_key": "ab" * 32, "broker_url": "redis+socket:///run/b.sock"}


class Server:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.status = 200
        self.answer: Any = ANSWER
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append({"path": self.path, **json.loads(body)})
                data = json.dumps(outer.answer).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_public_keys_out_and_who_the_server_is_in(server: Server, tmp_path: Path) -> None:
    directory = tmp_path / "px1"
    taken = enrol(directory, server.url, "token", "px1")
    assert load_enrolment(directory) == taken
    assert taken.server_url == server.url
    identity = load_or_create_identity(directory)
    asked = server.asked[0]
    assert asked["path"] == "/api/v1/enrol"
    assert (asked["name"], asked["token"]) == ("px1", "token")
    assert (asked["signing_key"], asked["sealing_key"]) == (
        identity.signing_public,
        identity.sealing_public,
    )
    assert "token" not in (directory / "enrolment.json").read_text()


def test_refusals_say_the_servers_words(server: Server, tmp_path: Path) -> None:
    server.status = 401
    server.answer = {"error": {"code": "unauthorized", "message": "the token is spent"}}
    with pytest.raises(EnrolmentError, match="the token is spent"):
        enrol(tmp_path, server.url, "token", "px1")
    server.status, server.answer = 500, {}
    with pytest.raises(ServerUnavailableError, match="HTTP status 500"):
        enrol(tmp_path, server.url, "token", "px1")
    server.status, server.answer = 200, {"hello": "world"}
    with pytest.raises(EnrolmentError, match="not that of a vmhaul server"):
        enrol(tmp_path, server.url, "token", "px1")
    with pytest.raises(ServerUnavailableError, match="does not answer"):
        enrol(tmp_path, "http://127.0.0.1:1", "token", "px1")
    assert load_enrolment(tmp_path) is None


def test_local_proxies_use_the_token_that_lies_there(server: Server, tmp_path: Path) -> None:
    directory = tmp_path / "proxies" / "px1"
    directory.mkdir(parents=True)
    assert enrol_with_file(directory) is None
    (directory / "join-token").write_text("vmhj_x\n")
    with pytest.raises(SetupError, match="vmhaul up"):
        enrol_with_file(directory)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.json").write_text(json.dumps({"url": server.url}))
    taken = enrol_with_file(directory)
    assert taken is not None
    assert (taken.name, server.asked[0]["token"]) == ("px1", "vmhj_x")
    assert not (directory / "join-token").exists()


def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy_worker", *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_join_on_the_command_line(server: Server, tmp_path: Path) -> None:
    directory = tmp_path / "here"
    done = run("--data", str(directory), "--join", server.url, given="vmhj_x\n")
    assert done.returncode == 0, done.stderr
    assert "enrolled as here (p-1)" in done.stdout
    assert server.asked[0]["token"] == "vmhj_x"
    server.status = 401
    done = run("--data", str(directory), "--join", server.url, "--name", "px9", given="bad\n")
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert server.asked[1]["name"] == "px9"


def test_a_proxy_that_was_not_enrolled_says_so(tmp_path: Path) -> None:
    done = run("--data", str(tmp_path))
    assert done.returncode == 1
    assert "vmhaul proxy join" in done.stderr
