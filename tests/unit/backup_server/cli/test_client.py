from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from backup_server.cli.client import ApiClient, ApiError, ServerAddress, find_server, part
from backup_server.cli.exits import CliError, Exit

TOKEN = "very-secret"


def _client(answer: Callable[[httpx.Request], httpx.Response]) -> ApiClient:
    address = ServerAddress(url="http://127.0.0.1:1", token=TOKEN)
    return ApiClient(address, transport=httpx.MockTransport(answer))


def test_the_token_goes_along_and_prints_nowhere() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={})

    _client(answer).get("/about")
    assert seen == [f"Bearer {TOKEN}"]
    assert TOKEN not in repr(ServerAddress(url="http://x", token=TOKEN))


def test_the_envelope_becomes_the_error() -> None:
    body = {"error": {"code": "conflict", "message": "job runs already", "details": {"session": "s1"}}}
    client = _client(lambda _: httpx.Response(409, json=body))
    with pytest.raises(ApiError, match="job runs already") as caught:
        client.post("/jobs/x/run")
    assert (caught.value.status, caught.value.error_code) == (409, "conflict")
    assert caught.value.details == {"session": "s1"}
    assert caught.value.code is Exit.ERROR


def test_a_stranger_is_told_from_a_server() -> None:
    client = _client(lambda _: httpx.Response(502, text="<html>bad gateway</html>"))
    with pytest.raises(CliError, match="not as a vmhaul server does"):
        client.get("/about")


def test_nobody_there_is_its_own_exit_code() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(CliError, match="is `vmhaul up` running") as caught:
        _client(refuse).get("/about")
    assert caught.value.code is Exit.UNREACHABLE


def test_lists_are_read_over_their_pages() -> None:
    pages = {None: ([1, 2], "a"), "a": ([3], "b"), "b": ([4], None)}

    def answer(request: httpx.Request) -> httpx.Response:
        numbers, cursor = pages[request.url.params.get("cursor")]
        return httpx.Response(200, json={"items": [{"n": n} for n in numbers], "next": cursor})

    assert [item["n"] for item in _client(answer).items("/sessions")] == [1, 2, 3, 4]
    assert [item["n"] for item in _client(answer).items("/sessions", limit=3)] == [1, 2, 3]


def test_what_was_not_given_is_not_asked_for() -> None:
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(dict(request.url.params))
        return httpx.Response(200, json={})

    _client(answer).get("/sessions", job=None, refresh=True)
    assert seen == [{"refresh": "true"}]


def test_a_name_is_one_segment_of_the_path() -> None:
    assert part("a/b c?") == "a%2Fb%20c%3F"


def test_the_server_of_a_data_directory(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="vmhaul up --data") as caught:
        find_server(tmp_path, None, None)
    assert caught.value.code is Exit.UNREACHABLE
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "server.json"
    file.write_text(json.dumps({"url": "http://127.0.0.1:9/", "token": TOKEN}))
    assert find_server(tmp_path, None, None) == ServerAddress(url="http://127.0.0.1:9", token=TOKEN)
    file.write_text("{")
    with pytest.raises(CliError, match="not readable"):
        find_server(tmp_path, None, None)


def test_a_server_elsewhere_needs_a_token_file(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="--token-file"):
        find_server(None, "http://far", None)
    token = tmp_path / "token"
    with pytest.raises(CliError, match="cannot be read"):
        find_server(None, "http://far", token)
    token.write_text("\n")
    with pytest.raises(CliError, match="empty"):
        find_server(None, "http://far", token)
    token.write_text("abc\n")
    assert find_server(None, "http://far/", token) == ServerAddress(url="http://far", token="abc")
    token.write_text(json.dumps({"url": "http://127.0.0.1:1", "token": "xyz"}))
    assert find_server(None, "http://far", token).token == "xyz"


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CliError, match="name the server's data directory with --data"):
        find_server(file, None, None)


@pytest.mark.parametrize(
    "content", [b"{not json", b"\xff\xfe\x00", b"two\nlines", "schl\u00fcssel".encode()]
)
def test_a_token_file_that_holds_something_else(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(CliError, match="holds no token") as caught:
        find_server(None, "http://127.0.0.1:1", file)
    assert "lines" not in str(caught.value)


@pytest.mark.parametrize("ref", ["", ".", ".."])
def test_what_no_name_can_be_is_not_asked_for(ref: str) -> None:
    with pytest.raises(CliError, match="is no name and no id") as caught:
        part(ref)
    assert caught.value.code is Exit.USAGE
