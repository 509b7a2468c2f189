from __future__ import annotations

from typing import Any

import pytest

from backup_server.cli import operations, secrets_in
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.proxy_machine import add_machine, parse_target, target_body

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


FOUND = {
    "system": "Debian GNU/Linux 12",
    "architecture": "x86_64",
    "python_version": "",
    "init": "systemd",
    "problems": [],
    "package_manager": "apt-get",
    "missing_packages": ["python3-venv"],
    "useful_packages": ["libnfs13"],
}


class _Server:
    """A server whose look found that, and whose operations are done at once."""

    json = False

    def __init__(self, **found: Any) -> None:
        self.api = self
        self.found = {**FOUND, **found}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def post(self, path: str, body: dict[str, Any], *, slow: bool = False) -> dict[str, Any]:
        del slow
        self.asked.append((path, body))
        ended = {"id": "o" * 32, "steps": [], "state": "success", "result": {"proxy": "p"}}
        return self.found if path == "/servers/look" else ended

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/proxies/p"
        return {"name": "px1", "modes": []}


def test_whoever_agrees_to_packages_has_seen_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(secrets_in, "confirm", lambda question, **_: asked.append(question))
    door: Any = _Server()
    add_machine(door, {"address": "px1"}, install_packages=False)
    assert asked == ["Let apt-get install python3-venv, libnfs13 there?"]
    assert door.asked[-1] == ("/proxies/deploy", {"address": "px1", "install_packages": True})


def test_what_is_only_useful_is_not_installed_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(secrets_in, "confirm")
    door: Any = _Server(missing_packages=[], package_manager="dnf", useful_packages=["libnfs"])
    add_machine(door, {"address": "px1"}, install_packages=False)
    assert door.asked[-1] == ("/proxies/deploy", {"address": "px1", "install_packages": False})
    assert "Direct NFS would need libnfs" in (said := capsys.readouterr().err)
    assert "EPEL" in said


def test_who_stops_watching_an_operation_is_told_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(operations.time, "sleep", interrupted)
    door: Any = type("Door", (), {"hint": lambda _, words: f"vmhaul {words}"})()
    running = {"id": "abcdef0123456789", "steps": [], "state": "running"}
    with pytest.raises(CliError, match=r"goes on with operation abcdef01: .*operation list") as caught:
        operations.follow(door, running)
    assert caught.value.code is Exit.INTERRUPTED
