from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from backup_server.log import redact, set_up_logging
from transports.vsphere.model import Secret


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_are_events_with_bound_ids(stream: io.StringIO) -> None:
    set_up_logging(form="json", stream=stream)
    with structlog.contextvars.bound_contextvars(session_id="s1"):
        structlog.get_logger().info("snapshot.created", vm="db01")
    logging.getLogger("some.library").warning("from a %s", "library")
    first, second = lines(stream)
    assert (first["event"], first["session_id"], first["vm"], first["level"]) == (
        "snapshot.created", "s1", "db01", "info",
    )  # fmt: skip
    assert str(first["timestamp"]).endswith("Z")
    assert (second["event"], second["level"]) == ("from a library", "warning")


def test_level(stream: io.StringIO) -> None:
    set_up_logging(level="warning", form="json", stream=stream)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_secrets_do_not_get_into_the_log(stream: io.StringIO) -> None:
    set_up_logging(form="json", stream=stream)
    log = structlog.get_logger()
    log.info(
        "x",
        password="hunter2",
        deep={"clone_ticket": "hunter2", "list": [{"token": "hunter2"}]},
        secret=Secret("hunter2"),
        url="postgresql://user:hunter2@host/db",
        header="Authorization: Bearer hunter2",
    )
    try:
        raise ValueError("connect to redis://:hunter2@host failed")
    except ValueError:
        log.exception("y")
    log.info("z", key="hunter2", master_key="hunter2", repository_key="hunter2")
    assert "hunter2" not in stream.getvalue()
    assert len(lines(stream)) == 3


def test_console_form(stream: io.StringIO) -> None:
    set_up_logging(stream=stream)
    structlog.get_logger().info("server.started", url="http://x", password="hunter2")
    assert "server.started" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_what_is_no_secret_is_left_alone() -> None:
    value = {"disk_key": 2000, "keys": [1], "job": "tokenise", "thumbprint": "AB:CD", "text": "key: x"}
    assert redact(value) == value
    assert redact({"password": "", "token": None, "password_set": True}) == {
        "password": "", "token": None, "password_set": True,
    }  # fmt: skip


def test_requests_of_the_http_library_are_no_events(stream: io.StringIO) -> None:
    level = logging.getLogger("httpx").level
    try:
        set_up_logging(form="json", stream=stream)
        logging.getLogger("httpx").info("HTTP Request: GET https://vcenter/sdk")
        logging.getLogger("httpx").warning("odd")
        assert [line["event"] for line in lines(stream)] == ["odd"]
    finally:
        logging.getLogger("httpx").setLevel(level)
