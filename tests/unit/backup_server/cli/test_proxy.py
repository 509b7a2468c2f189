"""What `vmhaul proxy` asks of the API, and what it says of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from typer.testing import CliRunner

from backup_server.cli import app as cli
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
