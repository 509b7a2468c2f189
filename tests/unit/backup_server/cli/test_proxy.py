"""What `vmhaul proxy` asks of the API, and what it says of the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from typer.testing import CliRunner

from backup_server.cli import app as cli
from backup_server.cli import proxy_here
from backup_server.cli.door import Door
from tests.unit.backup_server.cli.test_plan import PROXY


class Api:
    """Answers with one proxy; keeps what was asked for."""

    def __init__(self, proxy: Mapping[str, Any]) -> None:
        self.proxy = dict(proxy)
        self.patched: list[tuple[str, dict[str, Any]]] = []

    def items(self, path: str, **asked: object) -> Iterator[dict[str, Any]]:
        assert path == "/proxies"
        assert not asked
        yield self.proxy

    def patch(self, path: str, changes: dict[str, Any]) -> dict[str, Any]:
        self.patched.append((path, changes))
        return {**self.proxy, **changes}


def vmhaul(monkeypatch: pytest.MonkeyPatch, api: Api, *words: str) -> str:
    monkeypatch.setattr(Door, "api", api)
    monkeypatch.setattr(Door, "close", lambda _: None)
    done = CliRunner().invoke(cli.build(), ["proxy", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_proxy_gets_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(PROXY)
    assert "px9" in vmhaul(monkeypatch, api, "edit", "px", "--name", "px9")
    assert api.patched == [("/proxies/px", {"name": "px9"})]


def test_the_list_says_why_a_proxy_gets_no_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no new tasks" not in vmhaul(monkeypatch, Api({**PROXY, "state_note": ""}), "list")
    shown = vmhaul(monkeypatch, Api({**PROXY, "state_note": "its clock is 400 s ahead"}), "list")
    assert "px gets no new tasks: its clock is 400 s ahead" in shown


def test_a_proxy_gets_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    window = {"text": "mon-fri 08:00-18:00", "time_zone": "Europe/Berlin"}
    told = {
        "rate_limit_bytes_per_s": 50_000_000,
        "rate_limit": "400 Mbit/s",
        "rate_windows": [{"window": window, "hours": "mon-fri 08:00-18:00", "rate": "50 Mbit/s"}],
        "rate_now": "50 Mbit/s",
        "rate_restores": False,
    }
    api = Api(PROXY)
    monkeypatch.setattr(
        api, "patch", lambda path, changes: (api.patched.append((path, changes)), {**PROXY, **told})[1]
    )
    words = ["--rate-limit", "400Mbit", "--rate-window", "mon-fri 08:00-18:00=50Mbit"]
    shown = vmhaul(monkeypatch, api, "edit", "px", *words, "--rate-time-zone", "Europe/Berlin")
    assert api.patched == [
        (
            "/proxies/px",
            {"rate_limit": "400Mbit", "rate_windows": [{"window": window, "rate": "50Mbit"}]},
        )
    ]
    assert "400 Mbit/s" in shown
    assert "rate mon-fri 08:00-18:00 (Europe/Berlin)" in shown
    assert "50 Mbit/s" in vmhaul(monkeypatch, Api({**PROXY, **told, "state_note": ""}), "list")
    vmhaul(monkeypatch, api, "edit", "px", "--rate-limit", "unlimited", "--no-rate-windows")
    assert api.patched[-1] == ("/proxies/px", {"rate_limit": "unlimited", "rate_windows": []})


def test_a_time_zone_needs_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Door, "api", Api(PROXY))
    monkeypatch.setattr(Door, "close", lambda _: None)
    done = CliRunner().invoke(cli.build(), ["proxy", "edit", "px", "--rate-time-zone", "UTC"])
    assert done.exit_code != 0


MACHINE_OPTIONS = [
    ["--winrm"],
    ["--key-file", "k"],
    ["--password-stdin"],
    ["--python", "/usr/bin/python3.12"],
    ["--service", "px-two"],
    ["--install-packages"],
    ["--name", "other"],
]


@pytest.mark.parametrize("words", MACHINE_OPTIONS)
def test_a_forgotten_user_makes_no_token(words: list[str]) -> None:
    done = CliRunner().invoke(cli.build(), ["proxy", "add", "px1.example.com", *words])
    assert done.exit_code == 2
    assert words[0] in done.output
    assert "USER@px1.example.com" in done.output


def test_joining_a_directory_answers_in_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_here, "join_only", lambda *_: None)
    words = ["--json", "proxy", "join", "vmhaul-join-x", "--data", "/srv/px"]
    result = CliRunner().invoke(cli.build(), words)
    assert json.loads(result.output) == {"data_dir": "/srv/px"}
