from __future__ import annotations

from typing import Any

import pytest

from backup_server.cli.exits import CliError, Exit
from backup_server.cli.proxy_machine import parse_target, target_body

TARGETS = [
    ("root@px1", ("root", "px1", None)),
    ("ops@px1.example.com:2222", ("ops", "px1.example.com", 2222)),
    ("root@[2001:db8::1]:2222", ("root", "2001:db8::1", 2222)),
    ("root@[2001:db8::1]", ("root", "2001:db8::1", None)),
    ("root@2001:db8::1", ("root", "2001:db8::1", None)),
    ("a@domain@px1", ("a@domain", "px1", None)),
]


@pytest.mark.parametrize(("text", "parts"), TARGETS)
def test_targets(text: str, parts: tuple[str, str, int | None]) -> None:
    assert parse_target(text) == parts


@pytest.mark.parametrize("text", ["px1", "@px1", "root@", "root@px1:ssh"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(CliError) as caught:
        parse_target(text)
    assert caught.value.code is Exit.USAGE


class _Door:
    """Keeps what is asked of the API."""

    def __init__(self) -> None:
        self.api = self
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def post(self, path: str, body: dict[str, Any], *, slow: bool = False) -> dict[str, Any]:
        assert slow
        self.asked.append((path, body))
        return {"host_key": "SHA256:AB"}


@pytest.mark.parametrize(
    ("text", "winrm", "winrm_port", "port"),
    [
        ("a@px1", False, None, 22),
        ("a@px1", True, None, 5986),
        ("a@px1:15986", True, None, 15986),
        ("a@px1", True, 15986, 15986),
        ("CORP\\a@px1:15986", True, 15986, 15986),
    ],
)
def test_ports_and_kinds(text: str, winrm: bool, winrm_port: int | None, port: int) -> None:
    door: Any = _Door()
    body = target_body(
        door, text, winrm=winrm, winrm_port=winrm_port, host_key=None, accept_host_key=True
    )
    kind = "windows" if winrm else "linux"
    assert door.asked == [("/servers/probe", {"address": "px1", "port": port, "kind": kind})]
    assert (body["port"], body["host_key"], body.get("kind", "linux")) == (port, "SHA256:AB", kind)
    assert body["username"] == text.partition("@")[0]


def test_two_ports() -> None:
    door: Any = _Door()
    with pytest.raises(CliError, match="twice"):
        target_body(door, "a@px1:1", winrm=True, winrm_port=2, host_key="x", accept_host_key=False)
